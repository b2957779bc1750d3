package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// winsize prints COLUMNSxROWS of the terminal, and again at each change, that
// many times.
func winsize(args []string) (int, error) {
	changed := make(chan os.Signal, 8)
	signal.Notify(changed, syscall.SIGWINCH)
	times := 1
	if len(args) > 0 {
		times = number(args[0])
	}
	for range times {
		var size struct{ rows, columns, x, y uint16 }
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, os.Stdout.Fd(), syscall.TIOCGWINSZ, uintptr(unsafe.Pointer(&size)))
		if errno != 0 {
			return 1, fmt.Errorf("no terminal: %w", errno)
		}
		fmt.Printf("%dx%d\n", size.columns, size.rows)
		if times > 1 {
			<-changed
		}
	}
	return 0, nil
}

// hold ignores SIGHUP with two children that do so too, one of them in a
// session of its own, and lasts until SIGKILL.
func hold(args []string) (int, error) {
	signal.Ignore(syscall.SIGHUP, syscall.SIGTERM)
	if len(args) == 0 {
		for _, setsid := range []bool{false, true} {
			child := exec.Command("/proc/self/exe", "hold", "child")
			child.SysProcAttr = &syscall.SysProcAttr{Setsid: setsid}
			if err := child.Start(); err != nil {
				return 1, err
			}
		}
		fmt.Println("holding")
	}
	time.Sleep(365 * 24 * time.Hour)
	return 0, nil
}

// leave ends at once and leaves a child that holds its output open: the command
// that it is given, or one that lasts until SIGTERM.
func leave(args []string) (int, error) {
	if len(args) == 0 {
		args = []string{"sleep"}
	}
	child := exec.Command("/proc/self/exe", args...)
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	return 0, child.Start()
}

// ps prints the command lines of all processes.
func ps([]string) (int, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 1, err
	}
	for _, file := range files {
		if line, err := os.ReadFile(file); err == nil && len(line) > 0 {
			fmt.Println(strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " ")))
		}
	}
	return 0, nil
}
