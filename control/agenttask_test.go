package control

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/identity"
	testfault "rehost/internal/fault" // a fault is something else here
	"rehost/release"
)

const operator = "arn:aws:iam::123456789012:user/operator"

// collect asks for a support bundle.
func (w *world) collect(server string) (formgn.AgentTask, error) {
	out, err := w.StartAgentTask(w.t.Context(), operator, &formgn.StartAgentTaskForRehostRequest{SourceServerID: server, Kind: formgn.AgentTaskKindCollectLogs})
	if err != nil {
		return formgn.AgentTask{}, err
	}
	return *out.Task, nil
}

func (w *world) mustCollect(server string) formgn.AgentTask {
	w.t.Helper()
	task, err := w.collect(server)
	w.must(err)
	return task
}

// orders is what an agent hears that it has to do.
func (w *world) ordersOf(server string) []formgn.AgentOrder {
	w.t.Helper()
	out, err := w.GetAgentCommand(w.t.Context(), &formgn.GetAgentCommandForMgnRequest{SourceServerID: server})
	w.must(err)
	return out.Tasks
}

func (w *world) tasksOf(server string) []formgn.AgentTask {
	w.t.Helper()
	out, err := w.DescribeAgentTasks(w.t.Context(), &formgn.DescribeAgentTasksForRehostRequest{SourceServerID: server})
	w.must(err)
	return out.Tasks
}

func partOf(server, task string, content []byte, offset, size int) *formgn.SendSupportBundleForRehostRequest {
	sum := sha256.Sum256(content)
	return &formgn.SendSupportBundleForRehostRequest{SourceServerID: server, TaskID: task, SizeBytes: int64(len(content)), Sha256: hex.EncodeToString(sum[:]),
		Offset: int64(offset), Content: content[offset:min(offset+size, len(content))]}
}

// upload sends a bundle as an agent does; between is called before each part.
func (w *world) upload(server, task string, content []byte, between func()) {
	w.t.Helper()
	for at, calls := 0, 0; at < len(content); calls++ {
		if calls > 100 {
			w.t.Fatal("the bundle does not come to its end")
		}
		between()
		out, err := w.SendSupportBundle(w.t.Context(), partOf(server, task, content, at, 300<<10))
		w.must(err)
		at = int(out.NextOffset)
	}
}

func (w *world) download(server, task string) (content []byte, err error) {
	for size := int64(1); int64(len(content)) < size; {
		out, err := w.DownloadSupportBundle(w.t.Context(), &formgn.DownloadSupportBundleForRehostRequest{SourceServerID: server, TaskID: task, Offset: int64(len(content))})
		if err != nil {
			return nil, err
		}
		content, size = append(content, out.Content...), out.SizeBytes
	}
	return content, nil
}

func noise(seed uint64, n int) []byte {
	b, r := make([]byte, n), rand.NewChaCha8([32]byte{byte(seed)})
	r.Read(b)
	return b
}

func conflicted(err error) bool { return errors.As(err, new(*mgn.ConflictException)) }

// TestAgentTask: an operator asks for a support bundle; the agent hears of it until it has
// sent the whole, over restarts of the service and answers that are lost.
func TestAgentTask(t *testing.T) {
	w := newWorld(t)
	id := w.register("01")
	if _, err := w.collect("s-00000000000000000"); !errors.As(err, new(*mgn.ResourceNotFoundException)) {
		t.Fatalf("a server that is not there: %v", err)
	}
	task := w.mustCollect(id)
	if task.State != formgn.AgentTaskStatePending || task.RequestedBy != operator {
		t.Fatalf("asked for: %+v", task)
	}
	if again := w.mustCollect(id); again.TaskID != task.TaskID {
		t.Fatalf("asked for twice: %s and %s", task.TaskID, again.TaskID)
	}
	w.restart()
	for range 2 { // what was not done is offered again
		if got := w.ordersOf(id); len(got) != 1 || got[0] != (formgn.AgentOrder{TaskID: task.TaskID, Kind: "COLLECT_LOGS"}) {
			t.Fatalf("to do: %+v", got)
		}
		w.restart()
	}
	if got := w.tasksOf(id); len(got) != 1 || got[0].State != formgn.AgentTaskStateDelivered {
		t.Fatalf("once the agent has heard: %+v", got)
	}
	content := noise(1, 1<<20)
	w.upload(id, task.TaskID, content, w.restart)
	last := partOf(id, task.TaskID, content, len(content)-10, 10)
	if out, err := w.SendSupportBundle(t.Context(), last); err != nil || out.NextOffset != 1<<20 { // its answer was lost
		t.Fatal(out, err)
	}
	w.restart()
	got := w.tasksOf(id)
	if len(got) != 1 || got[0].State != formgn.AgentTaskStateSucceeded || *got[0].SizeBytes != 1<<20 || got[0].Sha256 != last.Sha256 {
		t.Fatalf("at the end: %+v", got)
	}
	if back, err := w.download(id, task.TaskID); err != nil || !bytes.Equal(back, content) {
		t.Fatalf("%d bytes came back: %v", len(back), err)
	}
	if n := len(w.ordersOf(id)); n != 0 {
		t.Errorf("%d tasks are offered after the end", n)
	}
	if !slices.Contains(w.happened.of(id), "SupportBundleReceived") {
		t.Errorf("recorded: %v", w.happened.of(id))
	}

	// Another one takes its place, but not at once.
	if _, err := w.collect(id); !conflicted(err) {
		t.Errorf("asked for again at once: %v", err)
	}
	w.clock.advance(2 * time.Minute)
	second := w.mustCollect(id)
	w.upload(id, second.TaskID, noise(2, 1000), func() {})
	w.must(w.watch(t.Context()))
	if _, err := w.download(id, task.TaskID); !conflicted(err) {
		t.Errorf("the first bundle after the second: %v", err)
	}
	if files := w.bundleFiles(); len(files) != 1 || files[0] != second.TaskID+".tar.gz" {
		t.Errorf("files: %v", files)
	}
	// Its time ends, and so does that of one whose server goes.
	w.clock.advance(8 * 24 * time.Hour)
	w.must(w.watch(t.Context()))
	if _, err := w.download(id, second.TaskID); !conflicted(err) || len(w.bundleFiles()) != 0 {
		t.Errorf("after a week: %v, files %v", err, w.bundleFiles())
	}
}

func (w *world) bundleFiles() (names []string) {
	w.t.Helper()
	entries, err := os.ReadDir(w.opts.Bundles)
	w.must(err)
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			w.t.Errorf("%s: %v, %v", e.Name(), info.Mode(), err)
		}
		names = append(names, e.Name())
	}
	return names
}

// TestAgentTask_Ends: a task that nobody does ends by itself, one that cannot be done with
// the agent's reason, and nothing can be said of it afterwards.
func TestAgentTask_Ends(t *testing.T) {
	w := newWorld(t)
	id := w.register("01")
	task := w.mustCollect(id)
	part := partOf(id, task.TaskID, noise(1, 600<<10), 0, 300<<10)
	_, err := w.SendSupportBundle(t.Context(), part)
	w.must(err)
	w.clock.advance(61 * time.Minute)
	if got := w.tasksOf(id); got[0].State != formgn.AgentTaskStateExpired || len(w.ordersOf(id)) != 0 {
		t.Errorf("over its deadline: %+v", got)
	}
	if _, err := w.SendSupportBundle(t.Context(), part); !conflicted(err) {
		t.Errorf("a part for a task that is over: %v", err)
	}
	w.must(w.watch(t.Context()))
	if files := w.bundleFiles(); len(files) != 0 {
		t.Errorf("left of what was not sent to its end: %v", files)
	}
	next := w.mustCollect(id)
	if next.TaskID == task.TaskID {
		t.Fatal("a task that is over is given out again")
	}
	fail := &formgn.UpdateAgentTaskForRehostRequest{SourceServerID: id, TaskID: next.TaskID, Failure: p("no room")}
	_, err = w.UpdateAgentTask(t.Context(), fail)
	w.must(err)
	if got := w.tasksOf(id); got[0].State != formgn.AgentTaskStateFailed || got[0].Message != "no room" || got[1].State != formgn.AgentTaskStateExpired {
		t.Errorf("got %+v", got)
	}
	if _, err := w.UpdateAgentTask(t.Context(), fail); !conflicted(err) {
		t.Errorf("a second answer: %v", err)
	}
	if got := w.happened.of(id); !slices.Contains(got, "AgentTaskFailed") || !slices.Contains(got, "AgentTaskExpired") {
		t.Errorf("recorded: %v", got)
	}
	// What belongs to a server goes with it.
	w.clock.advance(2 * time.Minute)
	last := w.mustCollect(id)
	w.upload(id, last.TaskID, noise(3, 100), func() {})
	_, err = w.DisconnectFromService(t.Context(), &mgn.DisconnectFromServiceRequest{SourceServerID: id})
	w.must(err)
	if _, err := w.collect(id); !conflicted(err) {
		t.Errorf("a task for an agent that is to uninstall itself: %v", err)
	}
	_, err = w.DeleteSourceServer(t.Context(), &mgn.DeleteSourceServerRequest{SourceServerID: id})
	w.must(err)
	w.must(w.watch(t.Context()))
	if files := w.bundleFiles(); len(files) != 0 {
		t.Errorf("left of a server that was deleted: %v", files)
	}
}

// TestAgentTask_Hostile: an agent sends what it should not.
func TestAgentTask_Hostile(t *testing.T) {
	w := newWorld(t)
	id, other := w.register("01"), w.register("02")
	task := w.mustCollect(id)
	content := noise(1, 1<<20)
	send := func(change func(in *formgn.SendSupportBundleForRehostRequest)) error {
		in := partOf(id, task.TaskID, content, 0, 1000)
		change(in)
		_, err := w.SendSupportBundle(t.Context(), in)
		return err
	}
	invalid := func(err error) bool { return errors.As(err, new(*mgn.ValidationException)) }
	missing := func(err error) bool { return errors.As(err, new(*mgn.ResourceNotFoundException)) }
	for name, c := range map[string]struct {
		change func(in *formgn.SendSupportBundleForRehostRequest)
		good   func(error) bool
	}{
		"TooMuch":     {func(in *formgn.SendSupportBundleForRehostRequest) { in.Content = content[:600<<10] }, invalid},
		"Nothing":     {func(in *formgn.SendSupportBundleForRehostRequest) { in.Content = nil }, invalid},
		"BehindEnd":   {func(in *formgn.SendSupportBundleForRehostRequest) { in.Offset = in.SizeBytes - 10 }, invalid},
		"Overflow":    {func(in *formgn.SendSupportBundleForRehostRequest) { in.Offset = 1<<63 - 1 }, invalid},
		"WrongTask":   {func(in *formgn.SendSupportBundleForRehostRequest) { in.TaskID = "t-00000000000000000" }, missing},
		"OtherServer": {func(in *formgn.SendSupportBundleForRehostRequest) { in.SourceServerID = other }, missing},
	} {
		if err := send(c.change); !c.good(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A part that belongs behind what there is is not taken, and nor is one twice.
	for _, step := range []struct{ offset, next int }{{1000, 0}, {0, 1000}, {0, 1000}, {2000, 1000}} {
		out, err := w.SendSupportBundle(t.Context(), partOf(id, task.TaskID, content, step.offset, 1000))
		if err != nil || out.NextOffset != int64(step.next) {
			t.Errorf("a part at %d: %+v, %v; want %d", step.offset, out, err, step.next)
		}
	}
	// The model bounds the whole.
	large := partOf(id, task.TaskID, content, 0, 10)
	large.SizeBytes = maxBundle + 1
	if len(large.Validate()) == 0 {
		t.Errorf("a bundle of %d bytes is valid", large.SizeBytes)
	}
	// Another agent neither hears of it nor answers it.
	if got := w.ordersOf(other); len(got) != 0 {
		t.Errorf("another agent is offered %+v", got)
	}
	if _, err := w.UpdateAgentTask(t.Context(), &formgn.UpdateAgentTaskForRehostRequest{SourceServerID: other, TaskID: task.TaskID, Failure: p("x")}); !missing(err) {
		t.Errorf("another agent's answer: %v", err)
	}
	if _, err := w.download(id, task.TaskID); !conflicted(err) {
		t.Errorf("a download of what is not there: %v", err)
	}
	// Bytes with another sum than was announced never count, and there is an end to trying.
	lie := partOf(id, task.TaskID, content[:1000], 0, 1000)
	lie.Sha256 = hex.EncodeToString(make([]byte, 32))
	tries := 0
	for ; tries < 20; tries++ {
		out, err := w.SendSupportBundle(t.Context(), lie)
		if err != nil {
			if !conflicted(err) {
				t.Fatal(err)
			}
			break
		}
		if out.NextOffset != 0 {
			t.Fatalf("told to go on at %d", out.NextOffset)
		}
	}
	if got := w.tasksOf(id)[0]; tries != bundleStarts-1 || got.State != formgn.AgentTaskStateFailed {
		t.Errorf("after %d tries: %+v", tries, got)
	}
	// A file that is a bomb once it is unpacked is what was sent, byte for byte.
	var bomb bytes.Buffer
	z, _ := gzip.NewWriterLevel(&bomb, gzip.BestCompression)
	for range 64 {
		z.Write(make([]byte, 1<<20))
	}
	w.must(z.Close())
	task = w.mustCollect(other)
	w.upload(other, task.TaskID, bomb.Bytes(), func() {})
	if back, err := w.download(other, task.TaskID); err != nil || !bytes.Equal(back, bomb.Bytes()) {
		t.Errorf("%d of %d bytes: %v", len(back), bomb.Len(), err)
	}
}

// TestAgentTask_TornFile: what a power cut has left of a file does not count as a bundle.
func TestAgentTask_TornFile(t *testing.T) {
	w := newWorld(t)
	id := w.register("01")
	task, content := w.mustCollect(id), noise(1, 900<<10)
	path := filepath.Join(w.opts.Bundles, task.TaskID+".tar.gz")
	torn := 0
	w.upload(id, task.TaskID, content, func() {
		switch torn++; torn {
		case 2: // shorter than it was
			w.must(os.Truncate(path, 1000))
		case 3: // as long, and zeros
			info, err := os.Stat(path)
			w.must(err)
			w.must(os.WriteFile(path, make([]byte, info.Size()), 0o600))
		}
	})
	if back, err := w.download(id, task.TaskID); err != nil || !bytes.Equal(back, content) {
		t.Errorf("%d bytes came back: %v", len(back), err)
	}
}

// TestAgentTask_Quota: bundles use up so much room and no more.
func TestAgentTask_Quota(t *testing.T) {
	w := newWorld(t)
	id := w.register("01")
	for i := range maxBundles / maxBundle {
		_, err := w.db.writer.ExecContext(t.Context(), `INSERT INTO agent_tasks (id, server_id, kind, state, requested_at, deadline, kept_until, document) VALUES (?, ?, 'COLLECT_LOGS', 'SUCCEEDED', '', '', '9', '{}')`, i, id)
		w.must(err)
	}
	if _, err := w.collect(id); !conflicted(err) {
		t.Errorf("one more than there is room for: %v", err)
	}
	_, err := w.db.writer.ExecContext(t.Context(), `DELETE FROM agent_tasks WHERE id = '0'`)
	w.must(err)
	w.mustCollect(id)
}

// TestAgentTask_API: the calls by their real signatures, and how they are recorded.
func TestAgentTask_API(t *testing.T) {
	a := newAPIWorld(t)
	id, other := a.register("01"), a.register("02")
	agent, stranger := a.session(identity.AgentRole, id), a.session(identity.AgentRole, other)
	start := &formgn.StartAgentTaskForRehostRequest{SourceServerID: id, Kind: formgn.AgentTaskKindCollectLogs}
	if _, err := awsapi.Call(t.Context(), agent, formgn.StartAgentTaskForRehost, start); !awsapi.IsError(err, awsapi.AccessDenied) {
		t.Errorf("an agent asks itself: %v", err)
	}
	task := a.mustCollect(id)
	poll := func() {
		t.Helper()
		_, err := awsapi.Call(t.Context(), agent, formgn.GetAgentCommandForMgn, &formgn.GetAgentCommandForMgnRequest{SourceServerID: id, AgentVersion: p("1.0")})
		a.must(err)
	}
	poll()
	if how := a.audit.how(); how != "each" {
		t.Errorf("the call in which the agent hears of a task is recorded %s", how)
	}
	poll()
	if how := a.audit.how(); how != "counted" {
		t.Errorf("the next one is recorded %s", how)
	}
	content := noise(1, 1<<20)
	send := partOf(id, task.TaskID, content, 0, bundlePart)
	if _, err := awsapi.Call(t.Context(), stranger, formgn.SendSupportBundleForRehost, send); !awsapi.IsError(err, awsapi.AccessDenied) {
		t.Errorf("another agent sends the bundle: %v", err)
	}
	for send.Offset < int64(len(content)) {
		out, err := awsapi.Call(t.Context(), agent, formgn.SendSupportBundleForRehost, send)
		a.must(err)
		send = partOf(id, task.TaskID, content, int(out.NextOffset), bundlePart)
	}
	for _, c := range []*awsapi.Client{agent, stranger} {
		if _, err := awsapi.Call(t.Context(), c, formgn.DownloadSupportBundleForRehost, &formgn.DownloadSupportBundleForRehostRequest{SourceServerID: id, TaskID: task.TaskID}); !awsapi.IsError(err, awsapi.AccessDenied) {
			t.Errorf("an agent downloads: %v", err)
		}
	}
	if back, err := a.download(id, task.TaskID); err != nil || !bytes.Equal(back, content) {
		t.Errorf("%d bytes: %v", len(back), err)
	}
}

// TestAgentTask_Kinds: who may have bundles collected need not be who may have agents upgraded,
// and what is denied of one kind is not of the other.
func TestAgentTask_Kinds(t *testing.T) {
	a := newAPIWorld(t)
	a.opts.Release = func() (release.Version, error) { return release.Version{Major: 9}, nil }
	id := a.register("01")
	kinds := []formgn.AgentTaskKind{formgn.AgentTaskKindCollectLogs, formgn.AgentTaskKindUpgrade}
	const may = `{"Effect": "Allow", "Action": "mgn:StartAgentTaskForRehost", "Resource": "*"`
	for name, c := range map[string]struct {
		statements string
		allowed    []formgn.AgentTaskKind
	}{
		"all":       {may + `}`, kinds},
		"collector": {may + `, "Condition": {"StringEquals": {"mgn:TaskKind": "COLLECT_LOGS"}}}`, kinds[:1]},
		"upgrader":  {may + `, "Condition": {"StringEquals": {"mgn:taskkind": ["UPGRADE", "DANCE"]}}}`, kinds[1:]},
		"denied":    {may + `}, {"Effect": "Deny", "Action": "mgn:*", "Resource": "*", "Condition": {"StringEquals": {"mgn:TaskKind": "UPGRADE"}}}`, kinds[:1]},
		"neither":   {may + `, "Condition": {"Null": {"mgn:TaskKind": "true"}}}`, nil},
	} {
		arn, err := a.directory.CreatePolicy(t.Context(), identity.Policy{Name: name, Document: `{"Version": "2012-10-17", "Statement": [` + c.statements + `]}`})
		a.must(err)
		a.must(a.directory.CreateUser(t.Context(), identity.User{Name: name, Attached: []string{arn}}))
		key, err := a.directory.CreateAccessKey(t.Context(), name)
		a.must(err)
		client := a.client(credentials.NewStaticCredentialsProvider(key.AccessKeyID, string(key.SecretAccessKey), ""))
		for _, kind := range kinds {
			_, err := awsapi.Call(t.Context(), client, formgn.StartAgentTaskForRehost, &formgn.StartAgentTaskForRehostRequest{SourceServerID: id, Kind: kind})
			if allowed := slices.Contains(c.allowed, kind); allowed && err != nil || !allowed && !awsapi.IsError(err, awsapi.AccessDenied) {
				t.Errorf("%s asks for %s: %v", name, kind, err)
			}
		}
	}
}

// TestDescribeAgents: one line for each agent, in pages.
func TestDescribeAgents(t *testing.T) {
	w := newWorld(t)
	ids := []string{w.register("01"), w.register("02"), w.register("03")}
	slices.Sort(ids)
	w.replicate(ids[0])
	w.mustCollect(ids[1])
	w.clock.advance(7 * time.Second)
	var all []formgn.Agent
	in := &formgn.DescribeAgentsForRehostRequest{MaxResults: p(int32(2))}
	for pages := 1; ; pages++ {
		out, err := w.DescribeAgents(t.Context(), in)
		w.must(err)
		all = append(all, out.Items...)
		if out.NextToken == "" {
			if pages != 2 {
				t.Errorf("%d pages", pages)
			}
			break
		}
		in.NextToken = &out.NextToken
	}
	if len(all) != 3 {
		t.Fatalf("%d agents", len(all))
	}
	if a := all[0]; a.SourceServerID != ids[0] || a.ReplicationState != "CONTINUOUS" || a.AgentVersion != "1.0" || a.LagMilliseconds == nil || *a.LagMilliseconds != 7000 || a.LastSeenDateTime == "" || len(a.OpenTasks) != 0 {
		t.Errorf("one that replicates: %+v", a)
	}
	if a := all[1]; len(a.OpenTasks) != 1 || a.OpenTasks[0].Kind != formgn.AgentTaskKindCollectLogs || a.LagMilliseconds != nil || a.Hostname == "" {
		t.Errorf("one with a task: %+v", a)
	}
}

// TestAgentTaskMutants: that an agent answers the task of another is noticed, and that a
// policy about one kind of task is one about both.
func TestAgentTaskMutants(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the package")
	}
	for name, m := range map[string]testfault.Mutant{
		"TaskOfAnother": {File: "agenttask.go", From: "tasksOfAgent+` AND id = ?`, serverID, id)", To: "`SELECT document FROM agent_tasks WHERE id = ?`, id)", Tests: "TestAgentTask_Hostile$"},
		"KindNotTold":   {File: "../awsapi/admit.go", From: "in.(KeyBringer); ok {", To: "in.(KeyBringer); ok && false {", Tests: "TestAgentTask_Kinds$"},
		"KindAlwaysOne": {File: "../awsapi/formgn/conditions.go", From: "string(v.Kind)", To: `"COLLECT_LOGS"`, Tests: "TestAgentTask_Kinds$"},
	} {
		t.Run(name, func(t *testing.T) { testfault.Caught(t, m) })
	}
}

// TestAgentTask_Upgrade: agents are asked to go on as a newer version that is signed, and
// as no other; how it went the agent says.
func TestAgentTask_Upgrade(t *testing.T) {
	w := newWorld(t)
	id := w.register("01")
	w.must(errOf(w.GetAgentCommand(t.Context(), &formgn.GetAgentCommandForMgnRequest{SourceServerID: id, AgentVersion: p("1.0.0")})))
	ask := func() (formgn.AgentTask, error) {
		w.clock.advance(2 * time.Minute)
		out, err := w.StartAgentTask(t.Context(), operator, &formgn.StartAgentTaskForRehostRequest{SourceServerID: id, Kind: formgn.AgentTaskKindUpgrade})
		if err != nil {
			return formgn.AgentTask{}, err
		}
		return *out.Task, nil
	}
	if _, err := ask(); !conflicted(err) {
		t.Errorf("without a release: %v", err)
	}
	offered, unsigned := release.Version{Minor: 9}, error(nil)
	w.release = func() (release.Version, error) { return offered, unsigned }
	w.restart()
	if _, err := ask(); !conflicted(err) {
		t.Errorf("an older version: %v", err)
	}
	offered.Major = 1
	unsigned = errors.New("nobody has signed it")
	if _, err := ask(); !conflicted(err) || !strings.Contains(err.Error(), "nobody has signed it") {
		t.Errorf("an unsigned release: %v", err)
	}
	unsigned = nil
	for _, failure := range []*string{p("the new version has not proven itself"), nil} {
		task, err := ask()
		w.must(err)
		if task.Version != "1.9.0" || task.State != formgn.AgentTaskStatePending {
			t.Fatalf("asked for: %+v", task)
		}
		if got := w.ordersOf(id); len(got) != 1 || got[0] != (formgn.AgentOrder{TaskID: task.TaskID, Kind: "UPGRADE"}) {
			t.Fatalf("to do: %+v", got)
		}
		w.restart()
		w.must(errOf(w.UpdateAgentTask(t.Context(), &formgn.UpdateAgentTaskForRehostRequest{SourceServerID: id, TaskID: task.TaskID, Failure: failure})))
		want := formgn.AgentTaskStateSucceeded
		if failure != nil {
			want = formgn.AgentTaskStateFailed
		}
		if got := w.tasksOf(id)[0]; got.State != want || got.Message != deref(failure) || len(w.ordersOf(id)) != 0 {
			t.Errorf("at the end: %+v, want %s", got, want)
		}
	}
	for _, name := range []string{"AgentTaskFailed", "AgentUpgraded"} {
		if !slices.Contains(w.happened.of(id), name) {
			t.Errorf("%s is not recorded: %v", name, w.happened.of(id))
		}
	}
	// Whose version is there already has nothing to do, and one that is to bring something is not done without.
	w.must(errOf(w.GetAgentCommand(t.Context(), &formgn.GetAgentCommandForMgnRequest{SourceServerID: id, AgentVersion: p("1.9.0")})))
	for range 2 {
		if task, err := ask(); err != nil || task.State != formgn.AgentTaskStateSucceeded {
			t.Errorf("there already: %+v, %v", task, err)
		}
	}
	bundle := w.mustCollect(id)
	if _, err := w.UpdateAgentTask(t.Context(), &formgn.UpdateAgentTaskForRehostRequest{SourceServerID: id, TaskID: bundle.TaskID}); !conflicted(err) {
		t.Errorf("a support bundle that was not sent counts: %v", err)
	}
}

func errOf[T any](_ T, err error) error { return err }
