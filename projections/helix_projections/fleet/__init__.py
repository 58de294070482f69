"""The fleet: whoever makes true what `fleet.<pool>.resized` says."""
