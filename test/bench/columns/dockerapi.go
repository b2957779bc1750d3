package columns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/remotegpu/remotegpu/test/bench/sandbox"
)

// dockerAPI is a column on a daemon that speaks Docker's HTTP API on a unix
// socket: dockerd itself, and podman.
type dockerAPI struct {
	config       *Config
	cgroupParent string
	host         *sandbox.Host
	daemon       *sandbox.Daemon
	http         *http.Client
	serial       atomic.Int64
}

// serve waits for the daemon's API on the socket and loads the image.
func (d *dockerAPI) serve(ctx context.Context, socket string) error {
	d.http = &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	err := d.daemon.Await(ctx, time.Minute, func(ctx context.Context) error {
		return d.call(ctx, http.MethodGet, "/_ping", nil, nil)
	})
	if err != nil {
		return err
	}
	file, err := os.Open(d.config.Archive)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	defer file.Close()
	var said bytes.Buffer
	if err := d.send(ctx, http.MethodPost, "/images/load?quiet=1", "application/x-tar", file, &said); err != nil {
		return err
	}
	if !strings.Contains(said.String(), ImageName) {
		return fmt.Errorf("load image: %s", said.String())
	}
	return nil
}

func (d *dockerAPI) Stop() {
	if d.http != nil {
		d.http.CloseIdleConnections()
	}
	if d.daemon != nil {
		d.daemon.Stop()
	}
	if d.host != nil {
		d.host.Close()
	}
}

func (d *dockerAPI) Tail() string { return d.daemon.Tail() }

func (d *dockerAPI) Create(ctx context.Context, id string) (*Instance, error) {
	number := 20000 + int(d.serial.Add(1)%10000)
	instance, err := d.Publish(ctx, id, []Binding{{Host: uint16(number), Inner: ContainerPort, Protocol: "tcp"}})
	if err != nil {
		return nil, err
	}
	instance.Port = number
	return instance, nil
}

// Publish makes a container with published ports and starts it.
func (d *dockerAPI) Publish(ctx context.Context, id string, bindings []Binding) (*Instance, error) {
	instance := &Instance{ID: id, Host: d.host}
	spans := newSpans()
	exposed, published := map[string]any{}, map[string]any{}
	for _, b := range bindings {
		inner := fmt.Sprintf("%d/%s", b.Inner, b.Protocol)
		exposed[inner] = struct{}{}
		published[inner] = []map[string]string{{"HostPort": strconv.Itoa(int(b.Host))}}
	}
	request := map[string]any{
		"Image":        ImageName,
		"ExposedPorts": exposed,
		"HostConfig": map[string]any{
			"CgroupParent": d.cgroupParent,
			"SecurityOpt":  []string{"no-new-privileges"},
			"PortBindings": published,
		},
	}
	if err := d.call(ctx, http.MethodPost, "/containers/create?name="+id, request, nil); err != nil {
		return nil, err
	}
	spans.end("create")
	if err := d.call(ctx, http.MethodPost, "/containers/"+id+"/start", nil, nil); err != nil {
		return nil, errors.Join(err, d.delete(context.WithoutCancel(ctx), id, true))
	}
	spans.end("start")
	instance.Spans = spans.taken
	return instance, nil
}

func (d *dockerAPI) Exec(ctx context.Context, instance *Instance) error {
	var made struct{ ID string }
	request := map[string]any{"Cmd": []string{truePath}, "AttachStdout": true, "AttachStderr": true}
	if err := d.call(ctx, http.MethodPost, "/containers/"+instance.ID+"/exec", request, &made); err != nil {
		return err
	}
	// The body ends with the process.
	var output bytes.Buffer
	start := bytes.NewReader([]byte(`{"Detach": false, "Tty": false}`))
	if err := d.send(ctx, http.MethodPost, "/exec/"+made.ID+"/start", "application/json", start, &output); err != nil {
		return err
	}
	var ended struct {
		Running  bool
		ExitCode *int
	}
	if err := d.call(ctx, http.MethodGet, "/exec/"+made.ID+"/json", nil, &ended); err != nil {
		return err
	}
	if ended.Running || ended.ExitCode == nil || *ended.ExitCode != 0 {
		return fmt.Errorf("process did not succeed: %+v: %s", ended, output.String())
	}
	return nil
}

func (d *dockerAPI) Remove(ctx context.Context, instance *Instance) error {
	stop := fmt.Sprintf("/containers/%s/stop?t=%d", instance.ID, stopSeconds)
	spans := newSpans()
	if err := d.call(ctx, http.MethodPost, stop, nil, nil); err != nil {
		return err
	}
	spans.end("stop")
	if err := d.delete(ctx, instance.ID, false); err != nil {
		return err
	}
	spans.end("delete")
	instance.Removal = spans.taken
	return nil
}

func (d *dockerAPI) delete(ctx context.Context, id string, force bool) error {
	return d.call(ctx, http.MethodDelete, fmt.Sprintf("/containers/%s?v=1&force=%t", id, force), nil, nil)
}

// call sends request as JSON and decodes the JSON answer into reply, when they
// are not nil.
func (d *dockerAPI) call(ctx context.Context, method, path string, request, reply any) error {
	var body io.Reader
	contentType := ""
	if request != nil {
		encoded, err := json.Marshal(request)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body, contentType = bytes.NewReader(encoded), "application/json"
	}
	var answer bytes.Buffer
	if err := d.send(ctx, method, path, contentType, body, &answer); err != nil {
		return err
	}
	if reply == nil {
		return nil
	}
	if err := json.Unmarshal(answer.Bytes(), reply); err != nil {
		return fmt.Errorf("decode answer to %s %s: %w", method, path, err)
	}
	return nil
}

// send sends one request and copies the answer's body. A status that is not a
// success is an error.
func (d *dockerAPI) send(ctx context.Context, method, path, contentType string, body io.Reader, answer io.Writer) error {
	request, err := http.NewRequestWithContext(ctx, method, "http://daemon/v1.40"+path, body)
	if err != nil {
		return fmt.Errorf("make request: %w", err)
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := d.http.Do(request)
	if err != nil {
		return fmt.Errorf("call daemon: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode >= http.StatusBadRequest {
		said, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		return fmt.Errorf("%s %s: %s: %s", method, path, response.Status, bytes.TrimSpace(said))
	}
	if _, err := io.Copy(answer, response.Body); err != nil {
		return fmt.Errorf("read answer to %s %s: %w", method, path, err)
	}
	return nil
}
