package rootfs

// WriteNamed has files written under a name, as where there is no O_TMPFILE.
func (r *Root) WriteNamed() { r.named = true }
