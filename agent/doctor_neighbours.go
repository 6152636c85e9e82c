package agent

import (
	"bufio"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A neighbour is another program that watches or copies disks. Modules that sit
// between file system and disk are the ones to mind: what they write themselves,
// and when, is theirs to say.
var neighbours = []struct {
	product   string
	modules   []string // of the kernel, as /proc/modules has them
	processes []string // names of programs, as /proc has them
	paths     []string // where it is installed
}{
	{"the AWS replication agent", []string{"aws_replication_driver"}, nil, []string{"var/lib/aws-replication-agent"}},
	{"Veeam", []string{"veeamsnap", "veeamblksnap", "blksnap", "bdevfilter"}, []string{"veeamservice"}, nil},
	{"Datto", []string{"dattobd"}, []string{"dlad"}, nil},
	{"Elastio", []string{"elastio_snap"}, nil, nil},
	{"Azure Site Recovery", []string{"involflt"}, nil, nil},
	{"Acronis", []string{"snapapi26"}, nil, nil},
	{"R1Soft", []string{"hcpdriver"}, nil, nil},
}

// neighbours looks for other agents, among them other ones of this program.
func (d *doctor) neighbours() {
	modules, processes := d.modules(), d.processes()
	found := false
	for _, n := range neighbours {
		for _, m := range n.modules {
			if modules[m] {
				found = true
				d.note(Warning, "neighbours", "two trackers under one disk slow it down twice, and snapshots of the other are written to the same disks: remove the one that is not needed", "the kernel module %s of %s is loaded", m, n.product)
			}
		}
		for _, p := range n.processes {
			if len(processes[p]) > 0 {
				found = true
				d.note(Warning, "neighbours", "both read all of every disk: remove the one that is not needed", "%s runs (%s)", n.product, p)
			}
		}
		for _, p := range n.paths {
			if _, err := os.Stat(filepath.Join("/", d.Machine.Root, p)); err == nil {
				found = true
				d.note(Warning, "neighbours", "both read all of every disk: remove the one that is not needed", "%s is installed (/%s)", n.product, p)
			}
		}
	}
	if others := d.others(processes["rehost-agent"]); len(others) > 0 {
		found = true
		d.note(Fails, "neighbours", "one agent can replicate all disks of a machine: rehost-agent uninstall --state-dir removes the other", "another rehost-agent runs here, of %s", strings.Join(others, " and "))
	}
	if !found {
		d.ok("neighbours", "no other replication or snapshot agent is known to be here")
	}
}

func (d *doctor) modules() map[string]bool {
	found := map[string]bool{}
	for line := range strings.Lines(d.Machine.read("proc/modules")) {
		name, _, _ := strings.Cut(line, " ")
		found[name] = true
	}
	return found
}

// processes are pids by the name of their program.
func (d *doctor) processes() map[string][]int {
	found := map[string][]int{}
	entries, _ := os.ReadDir(filepath.Join("/", d.Machine.Root, "proc"))
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if name := d.Machine.read(filepath.Join("proc", e.Name(), "comm")); name != "" {
			found[name] = append(found[name], pid)
		}
	}
	return found
}

// others are the state directories of the agents that run with another one.
func (d *doctor) others(pids []int) (dirs []string) {
	mine, _ := filepath.Abs(d.StateDir)
	for _, pid := range pids {
		text, err := fs.ReadFile(os.DirFS(filepath.Join("/", d.Machine.Root, "proc")), strconv.Itoa(pid)+"/cmdline")
		if err != nil {
			continue
		}
		words := bufio.NewScanner(strings.NewReader(strings.ReplaceAll(string(text), "\x00", "\n")))
		dir, run := DefaultStateDir, false
		for words.Scan() {
			word := words.Text()
			if word == "run" {
				run = true
			}
			if word == "--state-dir" && words.Scan() {
				dir = words.Text()
			} else if value, ok := strings.CutPrefix(word, "--state-dir="); ok {
				dir = value
			}
		}
		if run && dir != mine && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}
