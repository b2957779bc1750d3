package main

import (
	"os"
	"os/signal"
	"syscall"
)

// burn keeps one CPU busy until SIGTERM.
func burn([]string) (int, error) {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	for i := uint64(1); ; i = i*6364136223846793005 + 1 {
		if i&0xffff != 1 {
			continue
		}
		select {
		case <-stop:
			return 0, nil
		default:
		}
	}
}
