package bpf

import (
	"testing"
	"unsafe"
)

func TestSupported(t *testing.T) {
	if err := Supported(); err != nil {
		t.Skipf("SKIPPED: this kernel does not let us track requests: %v", err)
	}
	if got, want := unsafe.Sizeof(Counters{}), unsafe.Sizeof(trackerCounters{}); got != want {
		t.Fatalf("Counters has %d bytes, the kernel side's %d", got, want)
	}
	var c trackerControl
	if unsafe.Offsetof(c.Gen) != offGen || unsafe.Offsetof(c.Wide) != offWide || unsafe.Offsetof(c.Alone) != offAlone || unsafe.Offsetof(c.Whole) != offWhole || unsafe.Offsetof(c.Filter) != offFilter {
		t.Fatal("struct control is laid out differently on the kernel side")
	}
}
