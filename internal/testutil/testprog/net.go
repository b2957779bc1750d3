package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"
)

// serve answers HTTP at ADDR with who it is, who asked and what was asked.
func serve(args []string) (int, error) {
	name, err := os.Hostname()
	if err != nil {
		return 1, err
	}
	handler := func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		answer, err := json.Marshal(map[string]any{
			"hostname": name, "remote": r.RemoteAddr, "host": r.Host, "method": r.Method,
			"path": r.URL.Path, "header": r.Header, "body": string(body), "env": os.Environ(),
		})
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		_, _ = w.Write(answer)
	}
	return 1, http.ListenAndServe(args[0], http.HandlerFunc(handler))
}

// banner sends TEXT and the caller's address to whoever connects to ADDR.
func banner(args []string) (int, error) {
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return 1, err
	}
	for {
		conn, err := listener.Accept()
		if err != nil {
			return 1, err
		}
		fmt.Fprintf(conn, "%s %s\n", strings.Join(args[1:], " "), conn.RemoteAddr())
		conn.Close()
	}
}

func udpEcho(args []string) (int, error) {
	conn, err := net.ListenPacket("udp", args[0])
	if err != nil {
		return 1, err
	}
	buffer := make([]byte, 65536)
	for {
		n, peer, err := conn.ReadFrom(buffer)
		if err != nil {
			return 1, err
		}
		if _, err := conn.WriteTo(buffer[:n], peer); err != nil {
			return 1, err
		}
	}
}

// dial connects to ADDR, says "connected" and prints what the other end sends
// within two seconds.
func dial(args []string) (int, error) {
	conn, err := net.DialTimeout("tcp", args[0], 3*time.Second)
	if err != nil {
		return 1, err
	}
	defer conn.Close()
	fmt.Println("connected")
	if err := conn.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return 1, err
	}
	_, _ = io.Copy(os.Stdout, conn)
	return 0, nil
}

func get(args []string) (int, error) {
	client := http.Client{Timeout: 5 * time.Second}
	response, err := client.Get(args[0])
	if err != nil {
		return 1, err
	}
	defer response.Body.Close()
	_, err = io.Copy(os.Stdout, response.Body)
	return 0, err
}

func resolve(args []string) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupHost(ctx, args[0])
	if err != nil {
		return 1, err
	}
	slices.Sort(addresses)
	return out(strings.Join(addresses, "\n"))
}

func interfaces([]string) (int, error) {
	all, err := net.Interfaces()
	if err != nil {
		return 1, err
	}
	for _, i := range all {
		addresses, err := i.Addrs()
		if err != nil {
			return 1, err
		}
		fmt.Println(i.Name, i.Flags, addresses)
	}
	return 0, nil
}
