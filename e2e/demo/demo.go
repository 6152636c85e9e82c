package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/mgn"
	"github.com/aws/aws-sdk-go-v2/service/mgn/types"

	"rehost/e2e/site"
	"rehost/internal/testvm"
)

// A demo is one run of the whole road.
type demo struct {
	keep     bool
	bin, dir string

	t       *terminal
	log     *os.File
	service *service
	source  *source
	id      string // of the source server
	result  result
	undo    []func() error // what was started, in order
}

func (d *demo) run(ctx context.Context) result {
	d.t = newTerminal(os.Stdout)
	err := d.road(ctx)
	if err == nil && d.keep {
		d.lookAround()
		<-ctx.Done()
	}
	if cleanup := d.cleanUp(err == nil); err == nil {
		err = cleanup
	}
	d.t.endBar()
	d.result.OK = err == nil
	d.result.Seconds = time.Since(d.t.started).Round(100 * time.Millisecond).Seconds()
	if err != nil {
		d.result.Error = err.Error()
		d.t.say("error: %v", err)
		if d.log != nil {
			d.t.say("hint: the service's log and the source server's console are in %s", d.dir)
		}
	}
	fmt.Println()
	return d.result
}

// road is the demo, a step a method.
func (d *demo) road(ctx context.Context) error {
	for _, step := range []func(context.Context) error{d.prepare, d.startService, d.bootSource, d.installAgent, d.replicate, d.age, d.test} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	if d.keep {
		return nil
	}
	return d.cutover(ctx)
}

func (d *demo) prepare(context.Context) (err error) {
	if d.dir == "" {
		if err := os.MkdirAll("build", 0o755); err != nil {
			return err
		}
		if d.dir, err = os.MkdirTemp("build", "demo-"); err != nil {
			return err
		}
	}
	if d.dir, err = filepath.Abs(d.dir); err != nil {
		return err
	}
	d.log, err = os.Create(filepath.Join(d.dir, "log"))
	return err
}

func (d *demo) startService(ctx context.Context) (err error) {
	d.t.step("Starting the service: rehost serve")
	if d.service, err = startService(ctx, filepath.Join(d.bin, "rehost"), filepath.Join(d.dir, "service"), d.log); err != nil {
		return err
	}
	d.undo = append(d.undo, d.service.RemoveInstances, d.service.Stop)
	d.t.say("%s speaks the API of AWS MGN; account, CA and administrator's key are made", d.service.Endpoint)
	return d.service.SetUp(ctx)
}

func (d *demo) bootSource(ctx context.Context) (err error) {
	d.t.step("Building and booting a source server in QEMU: GRUB, GPT, two disks with ext4, a web page, a writer of records")
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if d.source, err = bootSource(ctx, filepath.Join(d.dir, "source"), d.log); err != nil {
		return err
	}
	d.undo = append(d.undo, func() error {
		d.source.vm.Kill()
		return os.WriteFile(filepath.Join(d.dir, "console"), []byte(d.source.vm.Console()), 0o600)
	})
	kernel, err := d.source.run(ctx, "uname -sr; df -h / /data | tail -n 2")
	d.t.say("%s", kernel)
	return err
}

func (d *demo) installAgent(ctx context.Context) error {
	d.t.step("Installing the agent in it over the network, with an installation key")
	id, secret, err := site.ReadCredentials(filepath.Join(d.service.Data, "installer-credentials"))
	if err != nil {
		return err
	}
	fingerprint, err := d.service.Fingerprint()
	if err != nil {
		return err
	}
	agent, err := testvm.OfferFile(filepath.Join(d.bin, "rehost-agent"), "/tmp/rehost-agent")
	if err != nil {
		return err
	}
	out, err := d.source.run(ctx, agent.Fetch+fmt.Sprintf("AWS_ACCESS_KEY_ID=%s AWS_SECRET_ACCESS_KEY=%s /tmp/rehost-agent install --no-prompt --region %s --endpoint %s:%d --ca-fingerprint %s\nrm /tmp/rehost-agent\n",
		id, secret, site.Region, testvm.GuestHost, d.service.Port, fingerprint))
	d.t.say("%s", out)
	if err = errors.Join(err, agent.Close()); err != nil {
		return err
	}
	if out, err := d.source.run(ctx, fmt.Sprintf("grep -rlF %s /var/lib /etc /usr/local /root /tmp /run 2>/dev/null; true", secret)); err != nil || out != "" {
		return errors.Join(fmt.Errorf("the installation key is on the source server: %q", out), err)
	}
	d.t.say("the installation key is nowhere on the source server's disks")
	server, err := d.service.Server(ctx)
	d.id = aws.ToString(server.SourceServerID)
	return err
}

func (d *demo) replicate(ctx context.Context) error {
	d.t.step("Replicating %s while its disks are written to", d.id)
	bytes, took, err := d.service.firstCopy(ctx, d.t)
	d.result.FirstCopyMBps = round(float64(bytes) / 1e6 / took.Seconds())
	if err == nil {
		d.t.say("READY_FOR_TEST")
	}
	return err
}

// age asks the agent, whose clock the points carry, how old the newest durable one is.
func (d *demo) age(ctx context.Context) error {
	var ages []float64
	for range 20 {
		out, err := d.source.run(ctx, "/usr/local/lib/rehost-agent/rehost-agent status --json")
		if err != nil {
			return err
		}
		var status struct {
			LagSeconds     float64 `json:"lagSeconds"`
			Tracking       string  `json:"tracking"`
			TrackingReason string  `json:"trackingReason"`
		}
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			return fmt.Errorf("read the agent's status: %w", err)
		}
		if status.Tracking != "EBPF" {
			return fmt.Errorf("the source server's changes are not tracked with eBPF: %s", status.TrackingReason)
		}
		ages = append(ages, status.LagSeconds*1000)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(300 * time.Millisecond):
		}
	}
	slices.Sort(ages)
	d.result.RecoveryPointAgeMs = math.Round(ages[len(ages)/2])
	d.t.say("the newest recovery point was %.0f ms old (median of %d looks)", d.result.RecoveryPointAgeMs, len(ages))
	return nil
}

func (d *demo) test(ctx context.Context) error {
	d.t.step("Launching a test instance: StartTest")
	start := func(ctx context.Context) (*types.Job, error) {
		out, err := d.service.API.StartTest(ctx, &mgn.StartTestInput{SourceServerIDs: []string{d.id}})
		if err != nil {
			return nil, fmt.Errorf("start the test: %w", err)
		}
		return out.Job, nil
	}
	called, process, booted, err := d.launchAndCheck(ctx, start)
	if err != nil {
		return err
	}
	d.result.LaunchToProcessMs, d.result.LaunchToBootedMs = process.Sub(called).Milliseconds(), booted.Sub(called).Milliseconds()
	d.t.say("machine running %d ms after the call, its page served after %d ms", d.result.LaunchToProcessMs, d.result.LaunchToBootedMs)
	if d.keep {
		return nil
	}
	return d.endTest(ctx)
}

func (d *demo) endTest(ctx context.Context) error {
	d.t.step("Ending the test: READY_FOR_CUTOVER, TerminateTargetInstances")
	_, err := d.service.API.ChangeServerLifeCycleState(ctx, &mgn.ChangeServerLifeCycleStateInput{SourceServerID: &d.id,
		LifeCycle: &types.ChangeServerLifeCycleStateSourceServerLifecycle{State: types.ChangeServerLifeCycleStateSourceServerLifecycleStateReadyForCutover}})
	if err != nil {
		return fmt.Errorf("finish the test: %w", err)
	}
	out, err := d.service.API.TerminateTargetInstances(ctx, &mgn.TerminateTargetInstancesInput{SourceServerIDs: []string{d.id}})
	if err != nil {
		return fmt.Errorf("terminate the test instance: %w", err)
	}
	_, err = d.service.job(ctx, d.t, out.Job, types.LaunchStatusTerminated)
	return err
}

func (d *demo) cutover(ctx context.Context) error {
	d.t.step("Cutting over: StartCutover")
	start := func(ctx context.Context) (*types.Job, error) {
		out, err := d.service.API.StartCutover(ctx, &mgn.StartCutoverInput{SourceServerIDs: []string{d.id}})
		if err != nil {
			return nil, fmt.Errorf("start the cutover: %w", err)
		}
		return out.Job, nil
	}
	if _, _, _, err := d.launchAndCheck(ctx, start); err != nil {
		return err
	}
	d.t.step("Finalizing: FinalizeCutover")
	if _, err := d.service.API.FinalizeCutover(ctx, &mgn.FinalizeCutoverInput{SourceServerID: &d.id}); err != nil {
		return fmt.Errorf("finalize the cutover: %w", err)
	}
	var left string
	err := poll(ctx, "the agent to wipe itself", time.Minute, 500*time.Millisecond, func() (bool, error) {
		out, err := d.source.run(ctx, "find / -xdev -name '*rehost-agent*' 2>/dev/null; pidof rehost-agent; true")
		left = strings.TrimSpace(out)
		return left == "", err
	})
	if err != nil {
		return fmt.Errorf("%w; left on the source server: %s", err, left)
	}
	d.result.AgentWiped = true
	server, err := d.service.Server(ctx)
	if err != nil {
		return err
	}
	d.t.say("lifecycle %s, replication %s; the agent, its key and its certificate are gone from the source server",
		server.LifeCycle.State, server.DataReplicationInfo.DataReplicationState)
	return nil
}

// launchAndCheck starts a launch job, waits until its instance has booted and
// serves its page, and compares every record in it with what the source server
// had made durable before.
func (d *demo) launchAndCheck(ctx context.Context, start func(context.Context) (*types.Job, error)) (called, process, booted time.Time, err error) {
	before, err := recordsAt(ctx, d.source.vm.Addr(80))
	if err != nil {
		return
	}
	if err = d.pointAfter(ctx); err != nil {
		return
	}
	called = time.Now()
	job, err := start(ctx)
	if err != nil {
		return
	}
	id, err := d.service.job(ctx, d.t, job, types.LaunchStatusLaunched)
	if err != nil {
		return
	}
	inst, err := d.service.instance(id)
	if err != nil {
		return
	}
	process = inst.Started
	addr := fmt.Sprintf("127.0.0.1:%d", inst.Forwards[0].HostPort)
	boot, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	page, err := testvm.Get(boot, "http://"+addr+"/")
	if err != nil {
		return called, process, booted, fmt.Errorf("fetch the page of instance %s: %w", id, err)
	}
	booted = time.Now()
	d.t.say("%s serves its page: %d bytes", id, len(page))
	if err = d.service.booted(ctx); err != nil {
		return
	}
	d.t.say("firstBoot SUCCEEDED, seen on its serial console")
	copied, err := recordsAt(ctx, addr)
	if err != nil {
		return
	}
	missing, err := lost(before.Now, copied.Boot)
	d.result.RecordsChecked += uint64(copied.Boot.A.Count + copied.Boot.B.Count)
	d.result.RecordsLost += missing
	if err == nil && missing > 0 {
		err = fmt.Errorf("%d records are missing", missing)
	}
	if err == nil {
		d.t.say("records up to the point: disk A 1-%d, disk B 1-%d, all there, in order, B never ahead of A", copied.Boot.A.Last, copied.Boot.B.Last)
	}
	return
}

// pointAfter waits for a recovery point that is newer than now, on the source's clock.
func (d *demo) pointAfter(ctx context.Context) error {
	first, err := d.service.Server(ctx)
	if err != nil {
		return err
	}
	was := aws.ToString(first.DataReplicationInfo.LastSnapshotDateTime)
	newer := 0
	return poll(ctx, "a newer recovery point", time.Minute, 100*time.Millisecond, func() (bool, error) {
		server, err := d.service.Server(ctx)
		if err != nil {
			return false, err
		}
		if is := aws.ToString(server.DataReplicationInfo.LastSnapshotDateTime); is != was {
			was = is
			newer++ // the first may have been cut before we asked and reported after
		}
		return newer >= 2, nil
	})
}

func (d *demo) lookAround() {
	d.t.step("Everything is left running. Look around, then press ^C:")
	d.t.say(`export AWS_SHARED_CREDENTIALS_FILE=%[1]s/credentials AWS_PROFILE=rehost AWS_CA_BUNDLE=%[1]s/ca.pem AWS_REGION=%[2]s
aws mgn describe-source-servers --filters '{}' --endpoint-url %[3]s
aws mgn describe-jobs --filters '{}' --endpoint-url %[3]s
curl http://%[4]s/          # the source server
%[5]s/rehost store ls --dir %[1]s/store --key %[1]s/store.key
%[5]s/rehost instance ls --data %[1]s`, d.service.Data, site.Region, d.service.Endpoint, d.source.vm.Addr(80), d.bin)
}

// cleanUp stops what was started, in reverse order. Files stay where something went wrong.
func (d *demo) cleanUp(ok bool) error {
	var errs []error
	slices.Reverse(d.undo)
	for _, f := range d.undo {
		errs = append(errs, f())
	}
	if d.log != nil {
		errs = append(errs, d.log.Close())
	}
	if err := errors.Join(errs...); err != nil || !ok {
		return err
	}
	return os.RemoveAll(d.dir)
}

func round(f float64) float64 { return float64(int(f*10+0.5)) / 10 }
