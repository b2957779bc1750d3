package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

func stat(args []string) (int, error) {
	var st syscall.Stat_t
	if err := syscall.Lstat(args[0], &st); err != nil {
		return 1, fmt.Errorf("stat %s: %w", args[0], err)
	}
	return out(fmt.Sprintf("mode=%o uid=%d gid=%d size=%d", st.Mode, st.Uid, st.Gid, st.Size))
}

func readlink(args []string) (int, error) {
	target, err := os.Readlink(args[0])
	if err != nil {
		return 1, err
	}
	return out(target)
}

// mknod makes a character device of a major and a minor number.
func mknod(args []string) (int, error) {
	device := number(args[1])<<8 | number(args[2])
	if err := syscall.Mknod(args[0], syscall.S_IFCHR|0o666, device); err != nil {
		return 1, fmt.Errorf("mknod %s: %w", args[0], err)
	}
	return 0, nil
}

// statfs prints type and size in bytes of a file system.
func statfs(args []string) (int, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(args[0], &st); err != nil {
		return 1, fmt.Errorf("statfs %s: %w", args[0], err)
	}
	return out(fmt.Sprintf("type=%x size=%d", st.Type, int64(st.Blocks)*st.Bsize))
}

func limits([]string) (int, error) {
	data, err := os.ReadFile("/proc/self/limits")
	if err != nil {
		return 1, err
	}
	return out(string(data))
}

// flood writes that many bytes to both outputs.
func flood(args []string) (int, error) {
	chunk := bytes.Repeat([]byte("x"), 4096)
	for left := number(args[0]); left > 0; left -= len(chunk) {
		part := chunk[:min(left, len(chunk))]
		if _, err := os.Stdout.Write(part); err != nil {
			return 1, err
		}
		if _, err := os.Stderr.Write(part); err != nil {
			return 1, err
		}
	}
	return 0, nil
}

// fork starts that many sleeping children, says how many it could, and kills
// them. Who is PID 1 has to reap them.
func fork(args []string) (int, error) {
	var children []*exec.Cmd
	for range number(args[0]) {
		child := exec.Command("/proc/self/exe", "sleep", "3600")
		if err := child.Start(); err != nil {
			fmt.Println("fork:", err)
			break
		}
		children = append(children, child)
	}
	fmt.Println("forked", len(children))
	var errs []error
	for _, child := range children {
		errs = append(errs, child.Process.Kill())
	}
	return 0, errors.Join(errs...)
}

// eatMemory touches that many bytes and keeps them until SIGTERM.
func eatMemory(args []string) (int, error) {
	memory := make([]byte, number(args[0]))
	for i := 0; i < len(memory); i += 4096 {
		memory[i] = 1
	}
	fmt.Println("ate", len(memory))
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	<-stop
	fmt.Println(memory[0])
	return 0, nil
}
