package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/mgn"
	"github.com/aws/aws-sdk-go-v2/service/mgn/types"
	"golang.org/x/sys/unix"

	"rehost/ca"
	"rehost/control"
	"rehost/e2e/site"
	"rehost/identity"
	"rehost/internal/fault"
)

// TestBadInput is what a person sees of mistakes and of trouble: the text of the
// command line, the answer of the API. One service and one agent go through all
// of it, and are as well in the end as in the beginning.
func TestBadInput(t *testing.T) {
	need(t)
	data := tmpfs(t, "160m")
	w := newWorld(t, 150*time.Second, data)
	disks := []*fault.Disk{fault.Loop(t, 24<<20), fault.Loop(t, 16<<20)}
	for _, d := range disks {
		fill(t, d.Path, rand.New(rand.NewPCG(1, 1)))
	}
	t.Run("Install", func(t *testing.T) { badInstallations(t, w, disks[0].Path) })
	t.Run("Clock", func(t *testing.T) { skewedClock(t, w) })
	t.Run("Interrupted", func(t *testing.T) { interrupted(t, w, disks[0].Path) })
	w.install(disks)
	o := newObserver(w)
	healthy := func(t *testing.T) {
		t.Helper()
		since := time.Now()
		eventually(t, w.ctx, "a point and CONTINUOUS", func() bool {
			return o.look().DataReplicationInfo.DataReplicationState == types.DataReplicationStateContinuous && o.last.After(since)
		})
	}
	healthy(t)
	t.Run("CopiedState", func(t *testing.T) { copiedState(t, w, o.id); healthy(t) })
	t.Run("Garbage", func(t *testing.T) { garbage(t, w); healthy(t) })
	t.Run("StagingFull", func(t *testing.T) { stagingFull(t, w, o, disks, healthy) })
	t.Run("SourceFails", func(t *testing.T) { sourceFails(t, w, o, disks) })
}

// badInstallations: each is refused, says why and what to do, and leaves nothing.
func badInstallations(t *testing.T, w *world, disk string) {
	dir := t.TempDir()
	good := w.installer()
	id := good[0]
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	other, err := ca.Open(filepath.Join(dir, "ca"), ca.Options{})
	if err != nil {
		t.Fatal(err)
	}
	otherCA := filepath.Join(dir, "other.pem")
	if err := os.WriteFile(otherCA, ca.EncodeCertificates(other.Root()), 0o600); err != nil {
		t.Fatal(err)
	}
	pinned := []string{"--ca-fingerprint", w.fingerprint()}
	replication := fmt.Sprintf("https://127.0.0.1:%d", w.config.ReplicationPort)
	tests := map[string]struct {
		env    []string
		device string
		args   []string
		want   []string // of what is said
	}{
		"unknown key":      {[]string{"AWS_ACCESS_KEY_ID=AKIAAAAAAAAAAAAAAAAA", good[1]}, disk, pinned, []string{"UnrecognizedClientException", "no such access key"}},
		"wrong secret":     {[]string{id, "AWS_SECRET_ACCESS_KEY=wrong"}, disk, pinned, []string{"InvalidSignatureException", "the secret access key does not belong"}},
		"no token":         {[]string{"AWS_ACCESS_KEY_ID=ASIAAAAAAAAAAAAAAAAA", good[1]}, disk, pinned, []string{"--aws-session-token is missing"}},
		"expired session":  {expiredSession(t, w), disk, pinned, []string{"ExpiredTokenException", "make new ones"}},
		"expired key":      {expiredKey(t, w), disk, pinned, []string{"AccessDeniedException", "no permissions boundary allows", "make a new one"}},
		"other region":     {good, disk, append(slices.Clone(pinned), "--region", "eu-west-1"), []string{"us-east-1", "region"}},
		"no fingerprint":   {good, disk, nil, []string{"--ca FILE or --ca-fingerprint"}},
		"fingerprint":      {good, disk, []string{"--ca-fingerprint", ca.Fingerprint(other.Root())}, []string{"compare --ca-fingerprint"}},
		"other CA":         {good, disk, []string{"--ca", otherCA}, []string{"another authority"}},
		"no such disk":     {good, "/dev/loop-none", pinned, []string{"no such device", "lsblk"}},
		"a file":           {good, file, pinned, []string{"not a block device", "/dev/sda"}},
		"not a disk":       {good, "/dev/null", pinned, []string{"not a block device"}},
		"nobody listens":   {good, disk, append(slices.Clone(pinned), "--endpoint", "https://127.0.0.1:1"), []string{"nothing listens there"}},
		"replication port": {good, disk, append(slices.Clone(pinned), "--endpoint", replication), []string{"hint: "}},
	}
	for name, test := range tests {
		state := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
		out, err := w.installed(state, test.env, test.device, test.args...)
		if exitStatus(err) != 1 {
			t.Errorf("%s: exit status %d: %s", name, exitStatus(err), out)
		}
		for _, want := range test.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: does not say %q: %s", name, want, out)
			}
		}
		if _, err := os.Stat(state); !os.IsNotExist(err) {
			t.Errorf("%s: something is left: %v", name, err)
		}
	}
	list, err := w.service.API.DescribeSourceServers(w.ctx, &mgn.DescribeSourceServersInput{})
	if err != nil || len(list.Items) != 0 {
		t.Errorf("there are %d source servers, %v", len(list.Items), err)
	}
	state := filepath.Join(dir, "closed") // to the agent's user: this test's directory is root's
	out, err := w.installed(state, good, disk, pinned...)
	if _, left := os.Stat(state); exitStatus(err) != 1 || !strings.Contains(out, "every directory on the way must let it through") || !os.IsNotExist(left) {
		t.Errorf("where the agent's user cannot go: exit status %d, left: %v: %s", exitStatus(err), left, out)
	}
}

// expiredKey makes an installation key, beside the service, that has run out when it is
// used.
func expiredKey(t *testing.T, w *world) (env []string) {
	t.Helper()
	out, err := w.command(nil, "rehost", "keys", "create-installer", "--data", w.config.Data, "--expires", "1s")
	made := time.Now()
	if err != nil {
		t.Fatalf("make a key: %v: %s", err, out)
	}
	for line := range strings.Lines(out) {
		if variable, ok := strings.CutPrefix(strings.TrimSpace(line), "export "); ok {
			env = append(env, variable)
		}
	}
	time.Sleep(time.Until(made.Add(1100 * time.Millisecond)))
	return env
}

// expiredSession is temporary credentials that ended hours ago.
func expiredSession(t *testing.T, w *world) (env []string) {
	t.Helper()
	db, err := control.OpenDatabase(w.ctx, filepath.Join(w.config.Data, "control.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	key, err := identity.LoadSealingKey(filepath.Join(w.config.Data, "sealing.key"))
	if err != nil {
		t.Fatal(err)
	}
	directory, err := identity.Open(w.ctx, identity.Options{Store: db.Identities(), Key: key, Now: func() time.Time { return time.Now().Add(-24 * time.Hour) }})
	if err != nil {
		t.Fatal(err)
	}
	c, err := directory.AssumeRoleAsService(w.ctx, identity.ServiceName, identity.AssumeRole{Role: identity.AgentRole, Session: "s-00000000000000001", SourceIdentity: "s-00000000000000001"})
	if err != nil {
		t.Fatal(err)
	}
	return []string{"AWS_ACCESS_KEY_ID=" + c.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + string(c.SecretAccessKey), "AWS_SESSION_TOKEN=" + string(c.SessionToken)}
}

// A skewed signer signs as a machine does whose clock is wrong.
type skewed struct {
	*v4.Signer
	by time.Duration
}

func (s skewed) SignHTTP(ctx context.Context, c aws.Credentials, r *http.Request, hash, service, region string, at time.Time, o ...func(*v4.SignerOptions)) error {
	return s.Signer.SignHTTP(ctx, c, r, hash, service, region, at.Add(s.by), o...)
}

func skewedClock(t *testing.T, w *world) {
	id, secret, err := site.ReadCredentials(filepath.Join(w.config.Data, "credentials"))
	if err != nil {
		t.Fatal(err)
	}
	for by, want := range map[time.Duration]string{-time.Hour: "Signature expired", time.Hour: "Signature not yet current", -10 * time.Second: ""} {
		api, err := w.service.Client(credentials.NewStaticCredentialsProvider(id, secret, ""), func(o *mgn.Options) {
			o.HTTPSignerV4, o.RetryMaxAttempts = skewed{v4.NewSigner(), by}, 1
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = api.DescribeSourceServers(w.ctx, &mgn.DescribeSourceServersInput{})
		switch {
		case want == "" && err != nil:
			t.Errorf("%v: %v", by, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "clock")):
			t.Errorf("a clock that is wrong by %v: the answer does not say so: %v", by, err)
		}
	}
}

// copiedState: a state directory that was made to be another server's is
// refused, and the server that it was copied from is as before.
func copiedState(t *testing.T, w *world, id string) {
	dir := filepath.Join(t.TempDir(), "agent")
	if err := os.CopyFS(dir, os.DirFS(w.state)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(dir, 0o700), os.Chmod(filepath.Join(dir, "client.pem"), 0o600)); err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "config.json")
	text, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, []byte(strings.ReplaceAll(string(text), id, "s-fffffffffffffffff")), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := w.command(nil, "rehost-agent", "run", "--state-dir", dir)
	if exitStatus(err) != 1 || !strings.Contains(out, "not source server s-fffffffffffffffff") || !strings.Contains(out, "hint: ") {
		t.Errorf("exit status %d: %s", exitStatus(err), out)
	}
}

// garbage: whoever comes to the replication port without a certificate is shown
// the door, quickly, and nobody else notices.
func garbage(t *testing.T, w *world) {
	address := fmt.Sprintf("127.0.0.1:%d", w.config.ReplicationPort)
	junk := make([]byte, 64<<10)
	noise(rand.New(rand.NewPCG(2, 2)), junk)
	for name, say := range map[string][]byte{"HTTP": []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "noise": junk, "nothing": nil} {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(5 * time.Second))
		c.Write(say) // it may be closed already
		if say == nil {
			defer c.Close() // stays while the others come
			continue
		}
		if got, err := io.ReadAll(io.LimitReader(c, 1<<20)); len(got) > 100 || os.IsTimeout(err) {
			t.Errorf("%s was answered with %d bytes, %v", name, len(got), err)
		}
		c.Close()
	}
	roots, err := w.service.Roots()
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.Dial("tcp", address, &tls.Config{RootCAs: roots, InsecureSkipVerify: true}) // it has no DNS name
	if err == nil {
		c.SetDeadline(time.Now().Add(5 * time.Second))
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("TLS without a certificate: %v", err)
	}
}

// stagingFull takes the space away from under the service, and gives it back.
func stagingFull(t *testing.T, w *world, o *observer, disks []*fault.Disk, healthy func(*testing.T)) {
	before := o.last
	ballast := filepath.Join(w.config.Data, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Statfs(w.config.Data, &st); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(st.Bavail)*st.Bsize-24<<20); err != nil {
		t.Fatal(err)
	}
	stop := scribble(t, disks, 3)
	defer stop()
	var said *types.DataReplicationError
	eventually(t, w.ctx, "the full disk to be shown", func() bool {
		info := o.look().DataReplicationInfo
		said = info.DataReplicationError
		return said != nil && info.DataReplicationState == types.DataReplicationStateStalled
	})
	t.Logf("the API says %s: %s", said.Error, aws.ToString(said.RawError))
	if said.Error != types.DataReplicationErrorStringSnapshotsFailure || !strings.Contains(aws.ToString(said.RawError), "storage is full") {
		t.Errorf("the error is %s: %s", said.Error, aws.ToString(said.RawError))
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	f.Close()
	began := time.Now()
	stop()
	healthy(t)
	t.Logf("replication went on %v after there was space again", time.Since(began).Round(100*time.Millisecond))
	replica := w.equal(o.id, disks)
	if first, ok := replica.Latest(); !ok || !first.Time.After(before) {
		t.Errorf("the newest point is %v", first)
	}
}

// sourceFails: a disk that cannot be read, then one that has become smaller.
// Both are shown, and the points from before stay what they were.
func sourceFails(t *testing.T, w *world, o *observer, disks []*fault.Disk) {
	replica := w.replica(o.id)
	good, _ := replica.Latest()
	keep := filepath.Join(t.TempDir(), "disk0")
	copyDisk(t, disks[0].Path, keep)
	restart := func(break_ func()) {
		t.Helper()
		if err := w.agent.Kill(); err != nil {
			t.Fatal(err)
		}
		break_()
		// As after a reboot: with its pins the agent would go on and not read what has not changed.
		if err := os.RemoveAll(filepath.Join(w.bpffs, "rehost-agent")); err != nil {
			t.Fatal(err)
		}
		w.runAgent()
	}
	for _, trouble := range []struct {
		name, raw string
		does      func()
	}{
		{"unreadable", "read " + disks[0].Path + " at byte ", func() { disks[0].Truncate(t, 8<<20) }},
		{"shrunk", "smaller", func() { disks[0].Resize(t, 4<<20) }},
	} {
		restart(trouble.does)
		var said *types.DataReplicationError
		eventually(t, w.ctx, "the failing disk to be shown", func() bool {
			server, err := w.service.Server(w.ctx)
			if err != nil {
				t.Fatal(err)
			}
			said = server.DataReplicationInfo.DataReplicationError
			return said != nil && server.DataReplicationInfo.DataReplicationState == types.DataReplicationStateStalled &&
				strings.Contains(aws.ToString(said.RawError), trouble.raw)
		})
		t.Logf("%s: the API says %s: %s", trouble.name, said.Error, aws.ToString(said.RawError))
		if said.Error != types.DataReplicationErrorStringFailedToStartDataTransfer {
			t.Errorf("%s: the error is %s", trouble.name, said.Error)
		}
	}
	same(t, replica, good, 0, keep)
}

func copyDisk(t *testing.T, from, to string) {
	t.Helper()
	in := open(t, from)
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
}

// tmpfs is a small file system.
func tmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		t.Fatalf("mount a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}
