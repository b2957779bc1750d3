// Command workload is the program of the benchmark's image: it answers every
// TCP connection to its port with a banner, and then does what one line asks
// for, if one comes, until SIGTERM. Called as "true" it does nothing and
// succeeds.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
)

func main() {
	if filepath.Base(os.Args[0]) == "true" {
		return
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run listens on the address args[0] and greets with args[1].
func run(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("want an address and a banner, have %d arguments", len(args))
	}
	terminate := make(chan os.Signal, 1)
	signal.Notify(terminate, syscall.SIGTERM)
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	go func() {
		<-terminate
		listener.Close()
	}()
	fmt.Println("listening on", args[0]) // something for the log
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		io.WriteString(conn, args[1])
		go serve(conn)
	}
}

// serve does what the line asks for that comes over a connection:
//
//	exit CODE               ends the program
//	log BYTES LINE RATE     writes so many bytes to standard output, in lines
//	                        of that length, RATE bytes a second (0: as many as
//	                        it can), and answers how that went, as JSON
func serve(conn net.Conn) {
	defer conn.Close()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return // it came for the banner
	}
	var code, length int
	var total, rate int64
	if n, _ := fmt.Sscanf(line, "exit %d", &code); n == 1 {
		os.Exit(code) // which closes the connection
	}
	if n, _ := fmt.Sscanf(line, "log %d %d %d", &total, &length, &rate); n == 3 {
		fmt.Fprintln(conn, writeLines(os.Stdout, total, length, rate))
		return
	}
	fmt.Fprintf(conn, "unknown command %q\n", line)
}
