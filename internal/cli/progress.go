package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

const (
	lineWidth = 79
	barWidth  = 24
	// From here on units are taken to be bytes: no operation has as many steps.
	bytesFrom = 64 << 10
)

// progress shows an operation: on a terminal as a bar that is drawn over and
// over, elsewhere as lines. Lines of a log go above the bar.
type progress struct {
	out      io.Writer
	terminal bool
	drawn    int // columns of the bar on the screen
	last     string
	quarter  int64
	log      []string
}

func newProgress(out io.Writer) *progress {
	return &progress{out: out, terminal: onTerminal(out)}
}

func (p *progress) show(op *remotegpuv1.Operation) {
	at := op.GetProgress()
	for _, line := range newLines(p.log, at.GetLog()) {
		p.note(line)
	}
	if log := at.GetLog(); len(log) > 0 {
		p.log = log
	}
	step := plain(at.GetStep())
	if problem := op.GetProblem(); problem != nil && !done(op) {
		step = fmt.Sprintf("attempt %d: %s", op.GetAttempts(), plain(problem.GetMessage()))
	}
	if step == "" {
		step = op.GetKind() + " " + state(op.GetState(), "OPERATION_STATE_")
	}
	step += layers(at.GetLayers())
	if p.terminal {
		p.draw(bar(step, at.GetDone(), at.GetTotal()))
		return
	}
	quarter := int64(0)
	if total := at.GetTotal(); total >= bytesFrom {
		quarter = int64(4 * float64(at.GetDone()) / float64(total))
	}
	if step == p.last && quarter <= p.quarter {
		return
	}
	p.last, p.quarter = step, quarter
	if quarter > 0 {
		step += " " + amount(at.GetDone(), at.GetTotal())
	}
	p.line(step)
}

// layers says how many layers of an image have come to their end.
func layers(all []*remotegpuv1.LayerProgress) string {
	if len(all) == 0 {
		return ""
	}
	var ended int
	for _, layer := range all {
		if layer.GetDone() == layer.GetTotal() && layer.GetState() != remotegpuv1.LayerState_LAYER_STATE_WAITING {
			ended++
		}
	}
	return fmt.Sprintf(", %d of %d layers", ended, len(all))
}

// bytes shows a transfer that is no operation, on a terminal only.
func (p *progress) bytes(step string, done, total int64) {
	if !p.terminal {
		return
	}
	if total <= 0 {
		p.draw(step + " " + size(done))
		return
	}
	p.draw(bar(step, done, total))
}

// note writes a line above the bar.
func (p *progress) note(text string) {
	p.close()
	p.line(plain(text))
}

// close takes the bar off the screen.
func (p *progress) close() {
	if p.drawn > 0 {
		p.write("\r" + strings.Repeat(" ", p.drawn) + "\r")
		p.drawn = 0
	}
}

func (p *progress) draw(text string) {
	runes := []rune(text)
	runes = runes[:min(len(runes), lineWidth)]
	pad := max(p.drawn-len(runes), 0)
	p.write("\r" + string(runes) + strings.Repeat(" ", pad))
	p.drawn = len(runes)
}

func (p *progress) line(text string) { p.write(text + "\n") }

// write shows something. Progress that cannot be shown fails nothing.
func (p *progress) write(text string) { _, _ = io.WriteString(p.out, text) }

func bar(step string, done, total int64) string {
	if total <= 0 {
		return step
	}
	filled := int(float64(barWidth) * min(max(float64(done)/float64(total), 0), 1))
	return fmt.Sprintf("[%s%s] %s %s", strings.Repeat("=", filled), strings.Repeat(" ", barWidth-filled),
		amount(done, total), step)
}

func amount(done, total int64) string {
	if total < bytesFrom {
		return fmt.Sprintf("%d/%d", done, total)
	}
	return fmt.Sprintf("%d%% of %s", int(100*float64(done)/float64(total)), size(total))
}

// newLines are the lines of now that come after those of before: both are the
// last lines of one growing log.
func newLines(before, now []string) []string {
	for keep := min(len(before), len(now)); keep > 0; keep-- {
		if slices.Equal(before[len(before)-keep:], now[:keep]) {
			return now[keep:]
		}
	}
	return now
}
