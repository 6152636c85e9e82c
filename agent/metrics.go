package agent

import (
	"context"

	"rehost/awsapi/formgn"
	"rehost/capture"
)

// metricsShare is how many reports there are to one of measurements, which say
// nothing that anybody waits for.
const metricsShare = 5

// metrics tells the service what was measured, while there is any. What is not
// delivered is not kept: counters are whole the next time.
func (a *agent) metrics(ctx context.Context) {
	for pause(ctx, metricsShare*a.options.report) == nil {
		c, tracked := a.replication.progress()
		if !tracked {
			continue
		}
		_, err := ask(ctx, a.identity, formgn.SendAgentMetricsForMgn, &formgn.SendAgentMetricsForMgnRequest{SourceServerID: a.config.SourceServerID, Metrics: measurements(c)})
		if err != nil && ctx.Err() == nil { // the loop of commands tells of a service that is away
			a.log.Debug("measurements are not delivered", "err", err)
		}
	}
}

func measurements(c capture.Status) []formgn.Metric {
	return []formgn.Metric{
		{Name: formgn.MetricPoints, Value: float64(c.Epochs)},
		{Name: formgn.MetricRounds, Value: float64(c.Rounds)},
		{Name: formgn.MetricConflicts, Value: float64(c.Conflicts)},
		{Name: formgn.MetricWithdrawn, Value: float64(c.Withdrawn)},
		{Name: formgn.MetricLongestRound, Value: c.LongestRound.Seconds()},
		{Name: formgn.MetricFreezes, Value: float64(c.Freezes)},
		{Name: formgn.MetricLongestFreeze, Value: c.LongestFreeze.Seconds()},
		{Name: formgn.MetricReadBytes, Value: float64(c.BytesRead)},
		{Name: formgn.MetricSentBytes, Value: float64(c.SentSize)},
		{Name: formgn.MetricCPUSeconds, Value: c.CPU.Seconds()},
		{Name: formgn.MetricCPULimit, Value: c.CPULimit},
		{Name: formgn.MetricReadLimit, Value: c.ReadLimit},
		{Name: formgn.MetricBacklog, Value: float64(c.Backlog)},
	}
}
