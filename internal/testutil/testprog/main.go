// Testprog is the one program in the image that tests run: small commands
// that show or exercise what an environment gives a process. Commands are
// joined with ";" as an argument of its own.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	args := os.Args
	if name := filepath.Base(args[0]); name == "true" || name == "cat" {
		args = append([]string{"testprog", name}, args[1:]...)
	}
	var code int
	for rest := args[1:]; ; {
		end := slices.Index(rest, ";")
		command := rest
		if end >= 0 {
			command = rest[:end]
		}
		code = run(command)
		if end < 0 || code != 0 {
			break
		}
		rest = rest[end+1:]
	}
	os.Exit(code)
}

type command struct {
	args int // least number of arguments
	run  func(args []string) (int, error)
}

func commands() map[string]command {
	return map[string]command{
		"sleep":       {0, sleep},
		"ignore-term": {0, ignoreTerm},
		"exit":        {1, func(args []string) (int, error) { return number(args[0]), nil }},
		"true":        {0, func([]string) (int, error) { return 0, nil }},
		"crash":       {0, crash},
		"echo":        {0, func(args []string) (int, error) { return out(strings.Join(args, " ")) }},
		"stderr":      {0, stderr},
		"tick":        {0, tick},
		"count":       {0, count},
		"babble":      {0, babble},
		"env":         {0, func([]string) (int, error) { return out(strings.Join(os.Environ(), "\n")) }},
		"id":          {0, identity},
		"pwd":         {0, workdir},
		"hostname":    {0, hostname},
		"cat":         {0, cat},
		"write":       {2, write},
		"fill":        {2, fill},
		"fill-synced": {2, fillSynced},
		"rm":          {1, func(args []string) (int, error) { return 0, os.RemoveAll(args[0]) }},
		"ls":          {1, list},
		"stat":        {1, stat},
		"statfs":      {1, statfs},
		"readlink":    {1, readlink},
		"mknod":       {3, mknod},
		"limits":      {0, limits},
		"flood":       {1, flood},
		"fork":        {1, fork},
		"eat-memory":  {1, eatMemory},
		"serve":       {1, serve},
		"banner":      {2, banner},
		"udp-echo":    {1, udpEcho},
		"dial":        {1, dial},
		"get":         {1, get},
		"resolve":     {1, resolve},
		"interfaces":  {0, interfaces},
		"burn":        {0, burn},
		"winsize":     {0, winsize},
		"hold":        {0, hold},
		"leave":       {0, leave},
		"ps":          {0, ps},

		"denied-ioctls": {0, deniedIoctls},
		"leave-project": {1, leaveProject},
	}
}

func run(args []string) int {
	if len(args) == 0 {
		args = []string{"sleep"}
	}
	c, found := commands()[args[0]]
	if !found || len(args)-1 < c.args {
		fmt.Fprintf(os.Stderr, "testprog: no command %q\n", args)
		return 64
	}
	code, err := c.run(args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "testprog:", err)
		return 1
	}
	return code
}

func out(text string) (int, error) {
	_, err := fmt.Println(text)
	return 0, err
}

func number(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testprog:", err)
		os.Exit(64)
	}
	return n
}

// sleep lasts until SIGTERM or SIGINT, or for a number of seconds, and reaps
// what it is left with as PID 1.
func sleep(args []string) (int, error) {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	var timer <-chan time.Time
	if len(args) > 0 {
		timer = time.After(time.Duration(number(args[0])) * time.Second)
	}
	for {
		select {
		case <-children:
			for os.Getpid() == 1 {
				if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 || err != nil {
					break
				}
			}
		case s := <-stop:
			fmt.Println("stopped by", s)
			return 0, nil
		case <-timer:
			return 0, nil
		}
	}
}

func ignoreTerm([]string) (int, error) {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
	fmt.Println("ignoring")
	<-time.After(365 * 24 * time.Hour)
	return 0, nil
}

// crash ends as a shell does whose child was aborted: PID 1 itself cannot be
// killed by a signal of its own.
func crash([]string) (int, error) { return 128 + int(syscall.SIGABRT), nil }

func stderr(args []string) (int, error) {
	_, err := fmt.Fprintln(os.Stderr, strings.Join(args, " "))
	return 0, err
}

// tick prints a counted line ten times a second until SIGTERM.
func tick([]string) (int, error) {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	for i := 1; ; i++ {
		fmt.Println("tick", i)
		select {
		case <-stop:
			return 0, nil
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// count prints twenty counted lines, in one write, a hundred times a second
// until SIGTERM.
func count([]string) (int, error) {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	var lines []byte
	for i := 1; ; {
		lines = lines[:0]
		for range 20 {
			lines = fmt.Appendf(lines, "count %d\n", i)
			i++
		}
		if _, err := os.Stdout.Write(lines); err != nil {
			return 1, err
		}
		select {
		case <-stop:
			return 0, nil
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// babble writes 32 KiB a hundred times a second, until it is killed.
func babble([]string) (int, error) {
	text := bytes.Repeat([]byte("babble\n"), 32<<10/7)
	for {
		if _, err := os.Stdout.Write(text); err != nil {
			return 1, err
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func identity([]string) (int, error) {
	groups, err := os.Getgroups()
	if err != nil {
		return 1, err
	}
	slices.Sort(groups)
	return out(fmt.Sprintf("uid=%d gid=%d groups=%v", os.Getuid(), os.Getgid(), groups))
}

func workdir([]string) (int, error) {
	dir, err := os.Getwd()
	if err != nil {
		return 1, err
	}
	return out(dir)
}

func hostname([]string) (int, error) {
	name, err := os.Hostname()
	if err != nil {
		return 1, err
	}
	return out(name)
}

func cat(args []string) (int, error) {
	if len(args) == 0 {
		_, err := io.Copy(os.Stdout, os.Stdin)
		return 0, err
	}
	for _, path := range args {
		data, err := os.ReadFile(path)
		if err != nil {
			return 1, err
		}
		if _, err := os.Stdout.Write(data); err != nil {
			return 1, err
		}
	}
	return 0, nil
}

func write(args []string) (int, error) {
	return 0, os.WriteFile(args[0], []byte(strings.Join(args[1:], " ")), 0o644)
}

// fill writes that many MiB to a file, and fails when there is no room.
func fill(args []string) (int, error) {
	return fillWith(args, 0)
}

// fillSynced is fill with each MiB on the disk before the next one: written by
// this process, not by the kernel some time later.
func fillSynced(args []string) (int, error) { return fillWith(args, os.O_SYNC) }

func fillWith(args []string, flags int) (int, error) {
	file, err := os.OpenFile(args[0], os.O_CREATE|os.O_TRUNC|os.O_WRONLY|flags, 0o644)
	if err != nil {
		return 1, err
	}
	block := make([]byte, 1<<20)
	for range number(args[1]) {
		if _, err := file.Write(block); err != nil {
			return 1, errors.Join(err, file.Close())
		}
	}
	return 0, file.Close()
}

func list(args []string) (int, error) {
	entries, err := os.ReadDir(args[0])
	if err != nil {
		return 1, err
	}
	for _, entry := range entries {
		fmt.Println(entry.Name())
	}
	return 0, nil
}
