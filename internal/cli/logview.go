package cli

import (
	"errors"
	"fmt"
	"io"
	"os"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

// logView shows lines and puts those together that came in parts.
type logView struct {
	app        *app
	timestamps bool
	// stdout and stderr are one and the same where both go to one place.
	stdout, stderr *outlet
	// begun are the streams whose last line came without its end, shown as a
	// line of its own or not.
	begun map[remotegpuv1.LogStream]bool
}

// outlet is a place that lines are shown at.
type outlet struct {
	to   io.Writer
	open remotegpuv1.LogStream // of the line there whose end has not come yet
}

func newLogView(a *app, timestamps bool) *logView {
	v := &logView{app: a, timestamps: timestamps, stdout: &outlet{to: a.stdout}, begun: make(map[remotegpuv1.LogStream]bool)}
	if v.stderr = v.stdout; !onePlace(a.stdout, a.stderr) {
		v.stderr = &outlet{to: a.stderr}
	}
	return v
}

// onePlace says whether two writers are the same terminal, pipe or file.
func onePlace(one, other io.Writer) bool {
	var found [2]os.FileInfo
	for i, w := range []io.Writer{one, other} {
		file, ok := w.(*os.File)
		if !ok {
			return false
		}
		info, err := file.Stat()
		if err != nil {
			return false // closed by who started us, say: writing will tell
		}
		found[i] = info
	}
	return os.SameFile(found[0], found[1])
}

func (v *logView) show(lines []*remotegpuv1.LogLine) error {
	// One write for each run of lines of a stream: pipes and terminals are slow.
	var pending []byte
	var at *outlet
	flush := func() error {
		if len(pending) == 0 {
			return nil
		}
		if _, err := at.to.Write(pending); err != nil {
			return fmt.Errorf("write output: %w", err)
		}
		pending = pending[:0]
		return nil
	}
	for _, line := range lines {
		if v.app.output == "json" {
			if err := v.app.jsonLine(line); err != nil {
				return err
			}
			continue
		}
		next, stream := v.outlet(line.GetStream()), line.GetStream()
		begun := v.begun[stream]
		v.begun[stream] = line.GetPartial()
		if begun && next.open != stream && len(line.GetData()) == 0 && !line.GetPartial() {
			continue // the other stream has come between: that line is ended already
		}
		if next != at {
			if err := flush(); err != nil {
				return err
			}
			at = next
		}
		if at.open != 0 && at.open != stream {
			pending, at.open = append(pending, '\n'), 0
		}
		if v.timestamps && at.open == 0 {
			pending = append(pending, v.stamp(line)...)
		}
		pending = append(pending, line.GetData()...)
		at.open = stream
		if !line.GetPartial() {
			pending, at.open = append(pending, '\n'), 0
		}
	}
	return flush()
}

func (v *logView) stamp(line *remotegpuv1.LogLine) string {
	if line.GetTime() == nil {
		return "- "
	}
	return line.GetTime().AsTime().Format("2006-01-02T15:04:05.000000000Z07:00") + " "
}

func (v *logView) outlet(stream remotegpuv1.LogStream) *outlet {
	if stream == remotegpuv1.LogStream_LOG_STREAM_STDERR {
		return v.stderr
	}
	return v.stdout
}

// note tells people something of ours, on a line of its own.
func (v *logView) note(text string) {
	_ = v.stderr.end() // whoever reads that is gone: nobody to tell
	v.app.say("%s", text)
}

// end ends lines whose last parts do not come.
func (v *logView) end() error { return errors.Join(v.stdout.end(), v.stderr.end()) }

func (o *outlet) end() error {
	if o.open == 0 {
		return nil
	}
	o.open = 0
	if _, err := io.WriteString(o.to, "\n"); err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	return nil
}
