// Package helper runs gpu.Driver in a process of its own: Client starts the
// daemon's program again and asks it, Serve is what answers there.
//
// They speak lines of JSON over the helper's standard input and output. The
// first line that the helper gets is its settings; each question has a number
// that its answers repeat. The helper is asked one thing at a time: whatever
// ends it costs the call that it was at, and no other. It ends when its
// standard input does, so it never outlives the daemon. Watching has a process
// of its own, since it waits.
package helper
