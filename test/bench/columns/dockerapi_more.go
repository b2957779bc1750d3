package columns

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
)

// List asks for all containers.
func (d *dockerAPI) List(ctx context.Context, limit int) (int, error) {
	var found []json.RawMessage
	err := d.call(ctx, http.MethodGet, "/containers/json?all=true&limit="+strconv.Itoa(limit), nil, &found)
	return len(found), err
}

// Restart starts a container that has ended.
func (d *dockerAPI) Restart(ctx context.Context, instance *Instance) error {
	return d.call(ctx, http.MethodPost, "/containers/"+instance.ID+"/start", nil, nil)
}

// Inspect tells what the daemon knows of a container.
func (d *dockerAPI) Inspect(ctx context.Context, instance *Instance) (Details, error) {
	var found struct {
		ID    string `json:"Id"`
		State struct{ Pid int }

		NetworkSettings struct {
			IPAddress string
			Networks  map[string]struct{ IPAddress string }
		}
	}
	if err := d.call(ctx, http.MethodGet, "/containers/"+instance.ID+"/json", nil, &found); err != nil {
		return Details{}, err
	}
	text := found.NetworkSettings.IPAddress
	for _, network := range found.NetworkSettings.Networks { // podman tells it only there
		text = cmp.Or(text, network.IPAddress)
	}
	address, err := netip.ParseAddr(text)
	if err != nil || found.State.Pid <= 0 {
		return Details{}, fmt.Errorf("container %s has process %d and address %q", instance.ID, found.State.Pid, text)
	}
	return Details{ID: found.ID, Process: found.State.Pid, Address: address}, nil
}

// Deaths listens to the daemon's events.
func (d *dockerAPI) Deaths(ctx context.Context, ready func(), told func(string)) error {
	filters := url.QueryEscape(`{"type":["container"]}`)
	body, err := d.open(ctx, "/events?filters="+filters)
	if err != nil {
		return err
	}
	defer body.Close()
	ready()
	for decoder := json.NewDecoder(body); ; {
		var event struct {
			Action string
			Actor  struct{ Attributes map[string]string }
		}
		if err := decoder.Decode(&event); err != nil {
			return fmt.Errorf("read events: %w", err)
		}
		if event.Action == "die" || event.Action == "died" {
			told(event.Actor.Attributes["name"])
		}
	}
}

// Logs reads standard output through the API.
func (d *dockerAPI) Logs(ctx context.Context, instance *Instance, tail int, each func([]byte)) error {
	path := "/containers/" + instance.ID + "/logs?stdout=true&tail=all"
	if tail > 0 {
		path = fmt.Sprintf("/containers/%s/logs?stdout=true&tail=%d", instance.ID, tail)
	}
	body, err := d.open(ctx, path)
	if err != nil {
		return err
	}
	defer body.Close()
	lines := bufio.NewScanner(&frames{from: bufio.NewReaderSize(body, 64<<10)})
	for lines.Scan() {
		each(bytes.TrimSuffix(lines.Bytes(), []byte("\r")))
	}
	return lines.Err()
}

// open begins a request whose answer is a stream.
func (d *dockerAPI) open(ctx context.Context, path string) (io.ReadCloser, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://daemon/v1.40"+path, nil)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	response, err := d.http.Do(request)
	if err != nil {
		return nil, fmt.Errorf("call daemon: %w", err)
	}
	if response.StatusCode >= http.StatusBadRequest {
		said, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		response.Body.Close()
		return nil, fmt.Errorf("GET %s: %s: %s", path, response.Status, bytes.TrimSpace(said))
	}
	return response.Body, nil
}

// frames takes the frames away in which a daemon mixes standard output and
// error: 4 bytes of which the first is the stream, 4 of the length.
type frames struct {
	from *bufio.Reader
	left int
}

func (f *frames) Read(to []byte) (int, error) {
	for f.left == 0 {
		var head [8]byte
		if _, err := io.ReadFull(f.from, head[:]); err != nil {
			if errors.Is(err, io.ErrUnexpectedEOF) {
				return 0, fmt.Errorf("read frame: %w", err)
			}
			return 0, err
		}
		f.left = int(binary.BigEndian.Uint32(head[4:]))
	}
	n, err := f.from.Read(to[:min(len(to), f.left)])
	f.left -= n
	return n, err
}
