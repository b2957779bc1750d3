package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const (
	// bufferSize holds what the kernel sends at once: it fills messages of up
	// to two pages, and one that is larger alone.
	bufferSize = 64 << 10
	// queueSize is how much may wait to be read, bytes. A transaction over some
	// ten thousand rules is more all the same, and is told as lost.
	queueSize = 4 << 20
)

// Chain is a chain that was changed, or a rule of it.
type Chain struct {
	Family uint8 // NFPROTO_IPV4 and so on
	Table  string
	Name   string // "": a whole table came or went
	Itself bool   // it came, went, or was renamed to this
}

// Commit is a transaction that somebody made.
type Commit struct {
	Generation uint32 // the number of the rules after it
	Touched    bool   // it changed a chain of the caller's interest
	By         string // who did it, as "name[pid]" in the initial pid namespace
	Lost       bool   // more happened than was told; the other fields are empty
}

// Events are the transactions that change rules.
type Events struct {
	file    *os.File
	of      func(Chain) bool
	buffer  []byte
	pending []Commit
	touched bool // by what was told since the last commit
}

// Subscribe begins to listen to changes, in the network namespace of the
// calling thread. of says which chains the caller has an interest in.
func Subscribe(of func(Chain) bool) (*Events, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("listen to nftables: %w", os.NewSyscallError("socket", err))
	}
	file := os.NewFile(uintptr(fd), "nftables events")
	// Without the privilege to go beyond the limit the limit has to do.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, queueSize) != nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, queueSize)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)})
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen to nftables: %w", err), file.Close())
	}
	return &Events{file: file, of: of, buffer: make([]byte, bufferSize)}, nil
}

// Next returns the next transaction. It blocks until there is one, or until
// Close: os.ErrClosed.
func (e *Events) Next() (Commit, error) {
	for {
		if len(e.pending) > 0 {
			commit := e.pending[0]
			e.pending = e.pending[1:]
			return commit, nil
		}
		size, err := e.file.Read(e.buffer)
		if errors.Is(err, unix.ENOBUFS) {
			e.touched = false
			return Commit{Lost: true}, nil
		}
		if err != nil {
			return Commit{}, fmt.Errorf("listen to nftables: %w", err)
		}
		e.read(e.buffer[:size])
	}
}

// Close ends the subscription, and a Next that waits.
func (e *Events) Close() error { return e.file.Close() }

// read takes messages in.
func (e *Events) read(b []byte) {
	for len(b) >= unix.SizeofNlMsghdr {
		size := int(binary.NativeEndian.Uint32(b))
		if size < unix.SizeofNlMsghdr+genmsgSize || size > len(b) {
			return
		}
		kind := binary.NativeEndian.Uint16(b[4:])
		body := b[unix.SizeofNlMsghdr:size]
		if kind>>8 == unix.NFNL_SUBSYS_NFTABLES {
			e.message(int(kind&0xff), body[0], body[genmsgSize:])
		}
		b = b[min((size+3)&^3, len(b)):]
	}
}

func (e *Events) message(kind int, family uint8, b []byte) {
	chain := Chain{Family: family}
	switch kind {
	case unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		chain.Table, chain.Name = text(attribute(b, unix.NFTA_RULE_TABLE)), text(attribute(b, unix.NFTA_RULE_CHAIN))
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN:
		chain.Table, chain.Name = text(attribute(b, unix.NFTA_CHAIN_TABLE)), text(attribute(b, unix.NFTA_CHAIN_NAME))
		chain.Itself = true
	case unix.NFT_MSG_NEWTABLE, unix.NFT_MSG_DELTABLE:
		chain.Table = text(attribute(b, unix.NFTA_TABLE_NAME))
	case unix.NFT_MSG_NEWGEN:
		e.pending = append(e.pending, Commit{
			Generation: number(attribute(b, unix.NFTA_GEN_ID)), Touched: e.touched,
			By: fmt.Sprintf("%s[%d]", text(attribute(b, unix.NFTA_GEN_PROC_NAME)), number(attribute(b, unix.NFTA_GEN_PROC_PID))),
		})
		e.touched = false
		return
	default: // sets, objects and flow tables: packets reach them through rules
		return
	}
	e.touched = e.touched || e.of(chain)
}
