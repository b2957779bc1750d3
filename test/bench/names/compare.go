package names

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"strings"
	"time"

	"github.com/remotegpu/remotegpu/test/bench/report"
	"github.com/remotegpu/remotegpu/test/bench/sandbox"
)

// Options are how to compare.
type Options struct {
	Rounds int
	Time   time.Duration // of each run at full speed; those for latency take half
}

// Config is where things are.
type Config struct {
	Dir   string // for the files of the run
	Tools string // directory with coredns
}

// latencyRate is how many questions a second are asked when their time counts.
const latencyRate = 5000

// server is a column at work.
type server struct {
	column  *report.Column
	port    int
	command []string
	daemon  *sandbox.Daemon
}

// Missing says why nothing can be compared; "" when it can.
func Missing(tools string) string {
	if _, err := exec.LookPath("dnsperf"); err != nil {
		return "dnsperf is not installed (deploy/dev/packages.sh bench)"
	}
	if _, err := os.Stat(filepath.Join(tools, "coredns")); err != nil {
		return "coredns is not built (tools/install.sh coredns)"
	}
	return ""
}

// Compare measures all columns into suite, in a network namespace of its own.
func Compare(ctx context.Context, cfg Config, o Options, suite *report.Suite, say func(string)) (err error) {
	names := []string{report.OurDNS, report.LimitedDNS, report.CoreDNS}
	servers := make([]*server, 0, len(names))
	for i, name := range names {
		servers = append(servers, &server{column: report.NewColumn(name), port: 5301 + i})
		suite.Columns = append(suite.Columns, servers[i].column)
		servers[i].column.Missing = Missing(cfg.Tools)
	}
	if servers[0].column.Missing != "" {
		return nil
	}
	questions := filepath.Join(cfg.Dir, "questions")
	if err := writeQuestions(questions); err != nil {
		return fmt.Errorf("write questions: %w", err)
	}
	ns, err := sandbox.NewNetNS()
	if err != nil {
		return fmt.Errorf("make namespace: %w", err)
	}
	defer ns.Close()
	if err := ns.Do(func() error { return exec.CommandContext(ctx, "ip", "link", "set", "lo", "up").Run() }); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	if err := commands(cfg, servers); err != nil {
		return err
	}
	for _, s := range servers {
		if err := s.start(ctx, ns, cfg.Dir); err != nil {
			return err
		}
		defer s.daemon.Stop()
	}
	for round := range o.Rounds + 1 { // the first is for warming up
		say(fmt.Sprintf("round %d of %d", round, o.Rounds))
		for i := range servers {
			s := servers[(i+round)%len(servers)]
			if err := s.measure(ctx, ns, questions, o, round > 0); err != nil {
				return fmt.Errorf("%s: %w", s.column.Name, err)
			}
		}
	}
	return nil
}

// pinned runs a program on one CPU: servers on the first, dnsperf on the last.
func pinned(server bool, command ...string) []string {
	cpu := "0"
	if !server {
		cpu = strconv.Itoa(goruntime.NumCPU() - 1)
	}
	return append([]string{"taskset", "-c", cpu}, command...)
}

// commands fills in how the servers are started.
func commands(cfg Config, servers []*server) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	for _, s := range servers {
		address := fmt.Sprintf("127.0.0.1:%d", s.port)
		if s.column.Name == report.CoreDNS {
			zoneFile, corefile := filepath.Join(cfg.Dir, "zone"), filepath.Join(cfg.Dir, "Corefile")
			if err := writeZone(zoneFile); err != nil {
				return fmt.Errorf("write zone: %w", err)
			}
			text := fmt.Sprintf("%s:%d {\n\tbind 127.0.0.1\n\tfile %s\n}\n", zone, s.port, zoneFile)
			if err := os.WriteFile(corefile, []byte(text), 0o600); err != nil {
				return fmt.Errorf("write Corefile: %w", err)
			}
			s.command = pinned(true, filepath.Join(cfg.Tools, "coredns"), "-conf", corefile)
			continue
		}
		asked := serving{Address: address}
		if s.column.Name == report.LimitedDNS {
			asked.PerSecond = 1000
		}
		arg, err := json.Marshal(asked)
		if err != nil {
			return fmt.Errorf("encode what to serve: %w", err)
		}
		s.command = pinned(true, self, ServeArg, string(arg))
	}
	return nil
}

func (s *server) start(ctx context.Context, ns *sandbox.NetNS, dir string) (err error) {
	log := filepath.Join(dir, fmt.Sprintf("dns-%d.log", s.port))
	if s.daemon, err = sandbox.StartDaemon(ns, log, os.Environ(), s.command[0], s.command[1:]...); err != nil {
		return err
	}
	return s.daemon.Await(ctx, 30*time.Second, func(ctx context.Context) error {
		return ns.Do(func() error {
			conn, err := new(net.Dialer).DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", s.port))
			if err != nil {
				return err
			}
			return conn.Close()
		})
	})
}

// measure asks over UDP and over pipelined TCP, as fast as it is answered and
// then at a fixed rate for the time that answers take.
func (s *server) measure(ctx context.Context, ns *sandbox.NetNS, questions string, o Options, counts bool) error {
	for _, mode := range []struct {
		name                  string
		rate, cost, p99, lost report.Row
	}{
		{"udp", report.UDPRate, report.UDPCost, report.UDPTime, report.UDPLost},
		{"tcp", report.TCPRate, report.TCPCost, report.TCPTime, report.TCPLost},
	} {
		before, err := s.daemon.CPU()
		if err != nil {
			return err
		}
		full, err := s.dnsperf(ctx, ns, questions, "-m", mode.name, "-l", seconds(o.Time), "-c", "8", "-q", "200")
		if err != nil {
			return err
		}
		after, err := s.daemon.CPU()
		if err != nil {
			return err
		}
		fixed, err := s.dnsperf(ctx, ns, questions, "-m", mode.name, "-l", seconds(o.Time/2), "-c", "8", "-q", "200", "-Q", strconv.Itoa(latencyRate), "-v")
		if err != nil {
			return err
		}
		if counts {
			s.column.AddValue(mode.rate, full.rate/1000)
			s.column.AddValue(mode.cost, float64((after-before).Microseconds())/float64(max(1, full.answers)))
			s.column.AddValue(mode.p99, report.Summarize(fixed.times).P99)
			s.column.AddValue(mode.lost, float64(full.lost+fixed.lost))
		}
	}
	return nil
}

func seconds(d time.Duration) string { return strconv.Itoa(max(1, int(d/time.Second))) }

// outcome is what dnsperf tells.
type outcome struct {
	rate    float64 // answers per second
	lost    int     // questions without an answer
	answers int
	times   []float64 // ms, with -v
}

func (s *server) dnsperf(ctx context.Context, ns *sandbox.NetNS, questions string, args ...string) (outcome, error) {
	args = append([]string{"dnsperf", "-s", "127.0.0.1", "-p", strconv.Itoa(s.port), "-d", questions, "-T", "1"}, args...)
	command := pinned(false, args...)
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.Do(cmd.Start); err != nil {
		return outcome{}, fmt.Errorf("start dnsperf: %w", err)
	}
	if err := cmd.Wait(); err != nil {
		return outcome{}, fmt.Errorf("dnsperf: %w: %s", err, tail(out.String()))
	}
	return parse(out.String())
}

// parse reads what dnsperf prints.
func parse(text string) (o outcome, err error) {
	found := 0
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case len(fields) >= 4 && fields[0] == ">": // > NOERROR name type seconds
			if fields[1] == "T" {
				continue // it got no answer in time, and counts as lost
			}
			took, err := strconv.ParseFloat(fields[len(fields)-1], 64)
			if err != nil {
				return o, fmt.Errorf("dnsperf says %q: %w", line, err)
			}
			o.times = append(o.times, took*1000)
		case strings.HasPrefix(strings.TrimSpace(line), "Queries lost:"):
			o.lost, err = strconv.Atoi(fields[2])
			found++
		case strings.HasPrefix(strings.TrimSpace(line), "Queries completed:"):
			o.answers, err = strconv.Atoi(fields[2])
			found++
		case strings.HasPrefix(strings.TrimSpace(line), "Queries per second:"):
			o.rate, err = strconv.ParseFloat(fields[3], 64)
			found++
		}
		if err != nil {
			return o, fmt.Errorf("dnsperf says %q: %w", line, err)
		}
	}
	if found != 3 {
		return o, fmt.Errorf("dnsperf says something else: %s", tail(text))
	}
	return o, nil
}

func tail(text string) string { return text[max(0, len(text)-2000):] }
