"""From files of audio to corrupted views."""
