package capture

// A variant is what may go wrong in the kernel, and what is wrong in the engine's
// or the kernel's order of steps: a mutation, which the checker must catch.
type variant struct {
	name                              string
	requeue, lostComplete, lostIssue  float64
	scheduled                         float64 // what is put back has given its tag away before
	noConflictTest, conflictFirst     bool
	markLate, clearAfterRead, noFold  bool
	noPending, pendingLate, scanEarly bool
	parts                             float64 // a request is done in parts
	alike                             float64 // who comes next gets the tag given back last, and writes the end of what was written again
	rollback                          float64 // the other side loses points between two sessions
	mistaken                          bool    // and says that it has them
	there                             bool    // the other side has a replica from before, some of it right
	audits                            bool    // lost issues are noticed, some time later
	oneEnd                            bool    // no write loses both
	storms                            bool    // they come in storms, from a clean audit to one that fails
	counted, countedEarly             bool    // they are counted when they happen; looked at too early
	spares                            bool    // a spare issue program is attached after the first
	credulous, confident              bool    // that takes an entry for the program's; whose own skips do not count
	forgottenFirst                    bool    // a lost completion's entry goes before its range is marked
	hasty                             bool    // or with another request that is put back, and is not marked at all
	lenient                           bool    // or with a completion that ends where it does and begins later, and is not marked either
	hurried                           bool    // a part that is done takes the entry away

	// The process is killed at any step, and another one goes on with what is pinned.
	crashes                         bool
	oweLate, settleEarly, noRestore bool
	keepLate, trusting, noDoubt     bool
	unsuspecting                    bool

	failing   float64 // reads begin and cease to fail, in each step of the engine
	forgetful bool    // what cannot be read is forgotten
	paid      bool    // and no longer owed

	// A file system on each disk, whose free blocks are not copied. A machine with
	// reboots loses what is pinned at a kill, and writes before it is tracked again.
	frees, reboots             bool
	noSyncBefore, noSyncAfter  bool
	earlyMap, oldMap           bool
	ignoreHeld, strikeWordwide bool
	takeBetween                bool

	freezes, believes bool // file systems are frozen; that is taken for proof

	mutant bool
}

var variants = []variant{
	{name: "as it is"},
	{name: "requeues", requeue: .02, scheduled: .5},
	{name: "requeues and lost completions", requeue: .02, scheduled: .5, lostComplete: .02, parts: .1},
	{name: "points lost by the other side", rollback: .3},
	{name: "M points lost by the other side unnoticed", rollback: .3, mistaken: true, mutant: true},
	{name: "a replica from before", there: true, requeue: .02, rollback: .1},
	{name: "M no conflict test in a rescan", there: true, noConflictTest: true, mutant: true},
	{name: "kills", crashes: true},
	{name: "kills, requeues and lost completions", crashes: true, requeue: .02, scheduled: .5, lostComplete: .02, parts: .1},
	{name: "kills and points lost by the other side", crashes: true, rollback: .3},
	{name: "audits that fail", audits: true, lostIssue: .1},
	{name: "kills and audits that fail", crashes: true, audits: true, lostIssue: .1, storms: true},
	{name: "kills in a rescan", crashes: true, there: true, requeue: .02, rollback: .1},
	{name: "programs that are skipped", lostIssue: .05, counted: true, requeue: .02},
	{name: "kills and programs that are skipped", crashes: true, lostIssue: .05, counted: true},
	{name: "a replica from before and programs that are skipped", there: true, lostIssue: .05, counted: true},
	{name: "M skipped programs looked for too early", lostIssue: .05, countedEarly: true, counted: true, mutant: true},
	{name: "a spare program", lostIssue: .2, lostComplete: .05, oneEnd: true, counted: true, spares: true, requeue: .02, scheduled: .5, parts: .1, alike: .5},
	{name: "a spare program and kills", crashes: true, lostIssue: .2, lostComplete: .05, oneEnd: true, counted: true, spares: true, parts: .1, alike: .5},
	{name: "M skips of the spare program not counted", lostIssue: .2, counted: true, spares: true, confident: true, mutant: true},
	{name: "M spare program trusts an entry left by another request", lostIssue: .5, lostComplete: .3, oneEnd: true, counted: true, spares: true, credulous: true, mutant: true},
	{name: "M a request that is put back takes what another one left with it", requeue: .3, lostIssue: .5, lostComplete: .3, oneEnd: true, counted: true, spares: true, hasty: true, mutant: true},
	{name: "M another request's entry that ends where a completion does is not marked", lostIssue: .5, lostComplete: .8, oneEnd: true, counted: true, spares: true, alike: 1, lenient: true, mutant: true},
	{name: "M an entry of which a part was done is not marked", lostComplete: .3, parts: .3, lenient: true, mutant: true},
	{name: "M a part that is done takes the entry away", lostComplete: .3, parts: .3, hurried: true, mutant: true},
	{name: "reads that fail", failing: .01, requeue: .02},
	{name: "kills and reads that fail", failing: .01, crashes: true, there: true, rollback: .1},
	{name: "M what cannot be read is forgotten", failing: .01, forgetful: true, mutant: true},
	{name: "M what cannot be read is no longer owed", failing: .01, crashes: true, paid: true, mutant: true},
	{name: "M killed between the bitmap and what is owed", crashes: true, oweLate: true, mutant: true},
	{name: "M no longer owed before it is acknowledged", crashes: true, settleEarly: true, mutant: true},
	{name: "M what is owed is not read back", crashes: true, noRestore: true, mutant: true},
	{name: "M acknowledgement written down too late", crashes: true, rollback: .3, keepLate: true, mutant: true},
	{name: "M position taken from the other side", crashes: true, rollback: .3, trusting: true, mutant: true},
	{name: "M doubt forgotten by a kill", crashes: true, rollback: .3, noDoubt: true, mutant: true},
	{name: "M suspicion forgotten by a kill", crashes: true, audits: true, lostIssue: .5, storms: true, unsuspecting: true, mutant: true},
	{name: "free space", frees: true, requeue: .02, lostComplete: .02},
	{name: "free space and kills", frees: true, crashes: true, requeue: .02},
	{name: "free space and points lost by the other side", frees: true, crashes: true, rollback: .3},
	{name: "free space and audits that fail", frees: true, crashes: true, audits: true, lostIssue: .1},
	{name: "free space and reboots", frees: true, crashes: true, reboots: true, rollback: .1},
	{name: "M map asked before changes are tracked", frees: true, crashes: true, reboots: true, earlyMap: true, mutant: true},
	{name: "M no sync before the map", frees: true, crashes: true, reboots: true, noSyncBefore: true, mutant: true},
	{name: "M no sync after the map", frees: true, crashes: true, reboots: true, noSyncAfter: true, mutant: true},
	{name: "M map from before a reboot", frees: true, crashes: true, reboots: true, oldMap: true, mutant: true},
	{name: "M writes to what was left out ignored", frees: true, ignoreHeld: true, mutant: true},
	{name: "M changes taken between the map and the strike", frees: true, takeBetween: true, mutant: true},
	{name: "M whole words left out", frees: true, strikeWordwide: true, mutant: true},
	{name: "freezes", freezes: true, requeue: .02, lostComplete: .02},
	{name: "freezes, kills and audits that fail", freezes: true, crashes: true, audits: true, lostIssue: .1},
	{name: "freezes, kills and reads that fail", freezes: true, failing: .01, crashes: true, there: true, rollback: .1},
	{name: "M a freeze is taken for proof", freezes: true, believes: true, mutant: true},
	{name: "M no conflict test", noConflictTest: true, mutant: true},
	{name: "M conflict test before the read", conflictFirst: true, mutant: true},
	{name: "M filter marked after the data landed", markLate: true, mutant: true},
	{name: "M bit cleared after the read", clearAfterRead: true, mutant: true},
	{name: "M nothing folded back after a lost session", noFold: true, mutant: true},
	{name: "M lost completions without a pending table", lostComplete: .02, noPending: true, mutant: true},
	{name: "M lost completions forgotten before they are marked", lostComplete: .1, forgottenFirst: true, mutant: true},
	{name: "M pending table read after the scan", lostComplete: .1, pendingLate: true, mutant: true},
	{name: "M bitmap scanned before the flip", scanEarly: true, mutant: true},
	{name: "M lost issues", lostIssue: .01, mutant: true},
}
