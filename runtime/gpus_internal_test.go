package runtime

import (
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/gpu"
)

func TestAnAnswerOfBeforeAChangeServesNobody(t *testing.T) {
	var kept inventory
	asked, changes := kept.begin()
	kept.outdate() // while the answer is on its way
	kept.set(gpu.Inventory{Driver: "1"}, asked, changes)
	if _, fresh := kept.get(time.Now(), time.Hour); fresh {
		t.Error("what may have been removed meanwhile is revived")
	}
	if kept.seen().Driver != "1" {
		t.Error("it is not what was last said")
	}
	asked, changes = kept.begin()
	kept.set(gpu.Inventory{Driver: "2"}, asked, changes)
	if _, fresh := kept.get(asked.Add(time.Minute), time.Minute); !fresh {
		t.Error("it is not fresh for as long as was asked")
	}
	if _, fresh := kept.get(asked.Add(time.Minute+1), time.Minute); fresh {
		t.Error("its age is counted from when it came")
	}
}
