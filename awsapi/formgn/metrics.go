package formgn

// Names of an agent's measurements, as SendAgentMetricsForMgn carries them. The
// service shows those that it knows, behind rehost_agent_, and keeps the others.
// What ends in _total grows from the start of the agent's process on.
const (
	MetricPoints        = "points_total"                // consistent points committed
	MetricRounds        = "rounds_total"                // tries to make one
	MetricConflicts     = "conflicts_total"             // runs read too late for theirs
	MetricWithdrawn     = "withdrawn_epochs_total"      // taken back after an audit
	MetricLongestRound  = "longest_round_seconds"       // since the first copy
	MetricFreezes       = "freezes_total"               // of file systems
	MetricLongestFreeze = "longest_freeze_seconds"      // of these
	MetricReadBytes     = "read_bytes_total"            // of the disks
	MetricSentBytes     = "sent_bytes_total"            // of payload, compressed
	MetricCPUSeconds    = "cpu_seconds_total"           // of the agent's process
	MetricCPULimit      = "cpu_limit_cores"             // 0: none
	MetricReadLimit     = "read_limit_bytes_per_second" // 0: none
	MetricBacklog       = "backlog_bytes"               // changed and not yet read
)
