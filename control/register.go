package control

import (
	"context"
	"crypto/x509"
	"fmt"

	"rehost/awsapi"
	"rehost/awsapi/formgn"
	"rehost/awsapi/mgn"
	"rehost/ca"
)

// Register makes the server answer all operations that are built here. Its
// options must have [VerifyPeer].
func (c *Service) Register(s *awsapi.Server) {
	awsapi.Handle(s, mgn.InitializeService, c.InitializeService)
	awsapi.Handle(s, mgn.CreateReplicationConfigurationTemplate, c.CreateReplicationConfigurationTemplate)
	awsapi.Handle(s, mgn.DescribeReplicationConfigurationTemplates, c.DescribeReplicationConfigurationTemplates)
	awsapi.Handle(s, mgn.UpdateReplicationConfigurationTemplate, c.UpdateReplicationConfigurationTemplate)
	awsapi.Handle(s, mgn.DeleteReplicationConfigurationTemplate, c.DeleteReplicationConfigurationTemplate)
	awsapi.Handle(s, mgn.CreateLaunchConfigurationTemplate, c.CreateLaunchConfigurationTemplate)
	awsapi.Handle(s, mgn.DescribeLaunchConfigurationTemplates, c.DescribeLaunchConfigurationTemplates)
	awsapi.Handle(s, mgn.UpdateLaunchConfigurationTemplate, c.UpdateLaunchConfigurationTemplate)
	awsapi.Handle(s, mgn.DeleteLaunchConfigurationTemplate, c.DeleteLaunchConfigurationTemplate)
	awsapi.Handle(s, mgn.GetReplicationConfiguration, c.GetReplicationConfiguration)
	awsapi.Handle(s, mgn.UpdateReplicationConfiguration, c.UpdateReplicationConfiguration)
	awsapi.Handle(s, mgn.GetLaunchConfiguration, c.GetLaunchConfiguration)
	awsapi.Handle(s, mgn.UpdateLaunchConfiguration, c.UpdateLaunchConfiguration)
	awsapi.Handle(s, mgn.DescribeSourceServers, c.DescribeSourceServers)
	awsapi.Handle(s, mgn.UpdateSourceServer, c.UpdateSourceServer)
	awsapi.Handle(s, mgn.ChangeServerLifeCycleState, c.ChangeServerLifeCycleState)
	awsapi.Handle(s, mgn.MarkAsArchived, c.MarkAsArchived)
	awsapi.Handle(s, mgn.DisconnectFromService, c.DisconnectFromService)
	awsapi.Handle(s, mgn.DeleteSourceServer, c.DeleteSourceServer)
	awsapi.Handle(s, mgn.StartReplication, c.StartReplication)
	awsapi.Handle(s, mgn.StopReplication, c.StopReplication)
	awsapi.Handle(s, mgn.PauseReplication, c.PauseReplication)
	awsapi.Handle(s, mgn.ResumeReplication, c.ResumeReplication)
	awsapi.Handle(s, mgn.RetryDataReplication, c.RetryDataReplication)
	awsapi.Handle(s, mgn.StartTest, c.StartTest)
	awsapi.Handle(s, mgn.StartCutover, c.StartCutover)
	awsapi.Handle(s, mgn.FinalizeCutover, c.FinalizeCutover)
	awsapi.Handle(s, mgn.TerminateTargetInstances, c.TerminateTargetInstances)
	awsapi.Handle(s, mgn.DescribeJobs, c.DescribeJobs)
	awsapi.Handle(s, mgn.DescribeJobLogItems, c.DescribeJobLogItems)
	awsapi.Handle(s, mgn.DeleteJob, c.DeleteJob)
	awsapi.Handle(s, mgn.TagResource, c.TagResource)
	awsapi.Handle(s, mgn.UntagResource, c.UntagResource)
	awsapi.Handle(s, mgn.ListTagsForResource, c.ListTagsForResource)

	awsapi.Handle(s, formgn.VerifyClientRoleForMgn, c.VerifyClientRole)
	awsapi.Handle(s, formgn.RegisterAgentForMgn, func(ctx context.Context, in *formgn.RegisterAgentForMgnRequest) (*formgn.RegisterAgentForMgnResponse, error) {
		return c.RegisterAgent(ctx, callerOf(ctx), in)
	})
	awsapi.Handle(s, formgn.IssueClientCertificateForMgn, func(ctx context.Context, in *formgn.IssueClientCertificateForMgnRequest) (*formgn.IssueClientCertificateForMgnResponse, error) {
		return c.IssueClientCertificate(ctx, callerOf(ctx), in)
	})
	awsapi.Handle(s, formgn.CreateTunnelInvitationForMgn, c.CreateTunnelInvitation)
	awsapi.Handle(s, formgn.DeleteTunnelInvitationForMgn, c.DeleteTunnelInvitation)
	awsapi.Handle(s, formgn.DescribeTunnelKeysForRehost, c.DescribeTunnelKeys)
	awsapi.Handle(s, formgn.CreateSessionForMgn, func(ctx context.Context, _ *formgn.CreateSessionForMgnRequest) (*formgn.CreateSessionForMgnResponse, error) {
		cert := awsapi.CallerOf(ctx).Certificate
		name, err := ca.PeerName(cert)
		if err != nil {
			return nil, denied("%v", err)
		}
		return c.CreateSession(ctx, Peer{Name: name, Serial: ca.Serial(cert)})
	})
	awsapi.Handle(s, formgn.UpdateAgentSourcePropertiesForMgn, c.UpdateAgentSourceProperties)
	awsapi.Handle(s, formgn.GetAgentReplicationInfoForMgn, c.GetAgentReplicationInfo)
	awsapi.Handle(s, formgn.UpdateAgentReplicationInfoForMgn, c.UpdateAgentReplicationInfo)
	awsapi.Handle(s, formgn.GetAgentCommandForMgn, c.GetAgentCommand)
	awsapi.Handle(s, formgn.UpdateAgentBacklogForMgn, c.UpdateAgentBacklog)
	awsapi.Handle(s, formgn.SendAgentLogsForMgn, c.SendAgentLogs)
	awsapi.Handle(s, formgn.SendAgentMetricsForMgn, c.SendAgentMetrics)
	awsapi.Handle(s, formgn.StartAgentTaskForRehost, func(ctx context.Context, in *formgn.StartAgentTaskForRehostRequest) (*formgn.StartAgentTaskForRehostResponse, error) {
		return c.StartAgentTask(ctx, callerOf(ctx).ARN, in)
	})
	awsapi.Handle(s, formgn.DescribeAgentTasksForRehost, c.DescribeAgentTasks)
	awsapi.Handle(s, formgn.UpdateAgentTaskForRehost, c.UpdateAgentTask)
	awsapi.Handle(s, formgn.SendSupportBundleForRehost, c.SendSupportBundle)
	awsapi.Handle(s, formgn.DownloadSupportBundleForRehost, c.DownloadSupportBundle)
	awsapi.Handle(s, formgn.DescribeAgentsForRehost, c.DescribeAgents)
	awsapi.Handle(s, formgn.DescribeReplicationServerAssociationsForMgn, c.DescribeReplicationServerAssociations)
	awsapi.Handle(s, formgn.NotifyAgentAuthenticationForMgn, c.NotifyAgentAuthentication)
	awsapi.Handle(s, formgn.NotifyAgentConnectedForMgn, c.NotifyAgentConnected)
	awsapi.Handle(s, formgn.NotifyAgentDisconnectedForMgn, c.NotifyAgentDisconnected)
	awsapi.Handle(s, formgn.NotifyAgentReplicationProgressForMgn, c.NotifyAgentReplicationProgress)
	awsapi.Handle(s, formgn.UpdateAgentReplicationProcessStateForMgn, c.UpdateAgentReplicationProcessState)
}

func callerOf(ctx context.Context) Caller {
	c := awsapi.CallerOf(ctx)
	out := Caller{ARN: c.Principal.ARN, SourceIdentity: c.Principal.SourceIdentity, Address: c.SourceIP, Quota: quotaOf(c.Principal)}
	if c.Certificate != nil {
		if name, err := ca.PeerName(c.Certificate); err == nil {
			out.Peer = Peer{Name: name, Serial: ca.Serial(c.Certificate)}
		}
	}
	return out
}

// VerifyPeer names the holder of a client certificate that may ask for
// credentials. Whether it is revoked is for the operation to say.
func VerifyPeer(_ context.Context, leaf *x509.Certificate) (string, error) {
	name, err := ca.PeerName(leaf)
	if err != nil {
		return "", err
	}
	if name.Role != ca.SourceServer && name.Role != ca.ReplicationServer {
		return "", fmt.Errorf("%w: %s has no session", ca.ErrName, name)
	}
	return name.String(), nil
}
