package control

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	"rehost/awsapi/mgn"
)

// Templates are kept as the very documents that the API shows.

// overlay sets the members that are present in request, whole, in doc.
func overlay(doc, request any) error {
	var base, over map[string]json.RawMessage
	if err := json.Unmarshal([]byte(encode(doc)), &base); err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(encode(request)), &over); err != nil {
		return err
	}
	maps.Copy(base, over)
	return json.Unmarshal([]byte(encode(base)), doc)
}

func (c *Service) putTemplate(ctx context.Context, tx *sql.Tx, kind, id string, doc any) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO templates (id, kind, created_at, document) VALUES (?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET document = excluded.document`, id, kind, stamp(c.now()), encode(doc))
	return err
}

func getTemplate[T any](ctx context.Context, q querier, kind, id string) (T, error) {
	docs, err := documents[T](ctx, q, `SELECT document FROM templates WHERE kind = ? AND id = ?`, kind, id)
	if err != nil || len(docs) == 0 {
		var none T
		return none, errors.Join(err, errNoTemplate)
	}
	return docs[0], nil
}

var errNoTemplate = errors.New("no such template")

// newest is the template that new source servers are made from, if there is one.
func newest[T any](ctx context.Context, q querier, kind string) (T, error) {
	docs, err := documents[T](ctx, q, `SELECT document FROM templates WHERE kind = ? ORDER BY created_at DESC, id LIMIT 1`, kind)
	if err != nil || len(docs) == 0 {
		var none T
		return none, errors.Join(err, errNoTemplate)
	}
	return docs[0], nil
}

// describeTemplates is a page of them, or those with the given ids.
func describeTemplates[T any](ctx context.Context, c *Service, operation, kind, word string, ids []string, token *string, max *int32, key func(T) string) ([]T, string, error) {
	after, limit, err := c.pager.start(operation, ids, token, max)
	if err != nil {
		return nil, "", err
	}
	query, args := `SELECT document FROM templates WHERE kind = ? AND id > ?`, []any{kind, after}
	if len(ids) > 0 {
		for _, id := range ids {
			if _, err := getTemplate[T](ctx, c.db.reader, kind, id); errors.Is(err, errNoTemplate) {
				return nil, "", notFound(word, id)
			}
		}
		var condition string
		condition, args = in("id", ids, args)
		query += ` AND ` + condition
	}
	docs, err := documents[T](ctx, c.db.reader, query+` ORDER BY id LIMIT ?`, append(args, limit+1)...)
	if err != nil {
		return nil, "", err
	}
	docs, token2 := next(c.pager, operation, ids, docs, limit, key)
	return docs, token2, nil
}

// deleteTemplate refuses while source servers or jobs exist, as MGN does for
// replication templates.
func (c *Service) deleteTemplate(ctx context.Context, kind, word, id string, refuse string) error {
	err := c.db.update(ctx, func(tx *sql.Tx) error {
		if _, err := getTemplate[json.RawMessage](ctx, tx, kind, id); errors.Is(err, errNoTemplate) {
			return notFound(word, id)
		} else if err != nil {
			return err
		}
		if refuse != "" {
			var n int
			if err := tx.QueryRowContext(ctx, `SELECT (SELECT COUNT(*) FROM source_servers) + (SELECT COUNT(*) FROM jobs)`).Scan(&n); err != nil {
				return err
			}
			if n > 0 {
				return conflict(word, id, refuse)
			}
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM templates WHERE id = ?`, id); err != nil {
			return err
		}
		return dropTags(ctx, tx, c.arn(templateKinds[kind], id))
	})
	c.changes.happened() // who may reach replication servers
	return err
}

var templateKinds = map[string]string{"rct": "replication-configuration-template", "lct": "launch-configuration-template"}

const (
	replicationWord = "ReplicationConfigurationTemplate"
	launchWord      = "LaunchConfigurationTemplate"
)

// CreateReplicationConfigurationTemplate implements the operation.
func (c *Service) CreateReplicationConfigurationTemplate(ctx context.Context, in *mgn.CreateReplicationConfigurationTemplateRequest) (*mgn.ReplicationConfigurationTemplate, error) {
	id := newID("rct")
	out := &mgn.ReplicationConfigurationTemplate{}
	if err := errors.Join(c.ready(ctx), overlay(out, in)); err != nil {
		return nil, err
	}
	out.ReplicationConfigurationTemplateID, out.Arn, out.Tags = id, c.arn(templateKinds["rct"], id), nil
	if err := checkEncryption(out.EbsEncryption, out.EbsEncryptionKeyArn); err != nil {
		return nil, err
	}
	return out, c.createTemplate(ctx, "rct", id, out, in.Tags, &out.Tags)
}

func (c *Service) createTemplate(ctx context.Context, kind, id string, doc any, tags mgn.TagsMap, into *mgn.TagsMap) error {
	err := c.db.update(ctx, func(tx *sql.Tx) error {
		if t, ok := doc.(*mgn.ReplicationConfigurationTemplate); ok {
			if err := checkGroups(ctx, tx, t.ReplicationServersSecurityGroupsIDs); err != nil {
				return err
			}
		}
		return errors.Join(c.putTemplate(ctx, tx, kind, id, doc), putTags(ctx, tx, c.arn(templateKinds[kind], id), tags))
	})
	*into = tags
	c.changes.happened() // who may reach replication servers
	return err
}

func checkEncryption(mode mgn.ReplicationConfigurationEbsEncryption, key string) error {
	if mode == "CUSTOM" && key == "" {
		return invalid("ebsEncryptionKeyArn", "ebsEncryption CUSTOM needs ebsEncryptionKeyArn")
	}
	return nil
}

// checkLaunch refuses what would be asked for in vain: it is not built yet.
func checkLaunch(disposition mgn.LaunchDisposition, actions *mgn.PostLaunchActions) error {
	if disposition == mgn.LaunchDispositionStopped {
		return invalid("launchDisposition", "launchDisposition STOPPED is not supported by this version of Rehost: instances are started")
	}
	if actions != nil && len(actions.SsmDocuments) > 0 {
		return invalid("postLaunchActions", "postLaunchActions are not supported by this version of Rehost")
	}
	return nil
}

// UpdateReplicationConfigurationTemplate implements the operation.
func (c *Service) UpdateReplicationConfigurationTemplate(ctx context.Context, in *mgn.UpdateReplicationConfigurationTemplateRequest) (out *mgn.ReplicationConfigurationTemplate, err error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	id := in.ReplicationConfigurationTemplateID
	err = c.db.update(ctx, func(tx *sql.Tx) error {
		doc, err := getTemplate[mgn.ReplicationConfigurationTemplate](ctx, tx, "rct", id)
		if errors.Is(err, errNoTemplate) {
			return notFound(replicationWord, id)
		}
		if err := errors.Join(err, overlay(&doc, in), checkGroups(ctx, tx, in.ReplicationServersSecurityGroupsIDs)); err != nil {
			return err
		}
		doc.Arn, out = c.arn(templateKinds["rct"], id), &doc
		if err := errors.Join(checkEncryption(doc.EbsEncryption, doc.EbsEncryptionKeyArn), c.putTemplate(ctx, tx, "rct", id, doc)); err != nil {
			return err
		}
		tags, err := tagsOf(ctx, tx, doc.Arn)
		out.Tags = tags[doc.Arn]
		return err
	})
	c.changes.happened() // who may reach replication servers
	return out, err
}

// DescribeReplicationConfigurationTemplates implements the operation.
func (c *Service) DescribeReplicationConfigurationTemplates(ctx context.Context, in *mgn.DescribeReplicationConfigurationTemplatesRequest) (*mgn.DescribeReplicationConfigurationTemplatesResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	items, token, err := describeTemplates(ctx, c, "DescribeReplicationConfigurationTemplates", "rct", replicationWord, in.ReplicationConfigurationTemplateIDs,
		in.NextToken, in.MaxResults, func(t mgn.ReplicationConfigurationTemplate) string { return t.ReplicationConfigurationTemplateID })
	if err != nil {
		return nil, err
	}
	for i := range items {
		tags, err := tagsOf(ctx, c.db.reader, items[i].Arn)
		if err != nil {
			return nil, err
		}
		items[i].Tags = tags[items[i].Arn]
	}
	return &mgn.DescribeReplicationConfigurationTemplatesResponse{Items: items, NextToken: token}, nil
}

// DeleteReplicationConfigurationTemplate implements the operation.
func (c *Service) DeleteReplicationConfigurationTemplate(ctx context.Context, in *mgn.DeleteReplicationConfigurationTemplateRequest) (*mgn.DeleteReplicationConfigurationTemplateResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	return &mgn.DeleteReplicationConfigurationTemplateResponse{}, c.deleteTemplate(ctx, "rct", replicationWord, in.ReplicationConfigurationTemplateID,
		"source servers or jobs exist: delete them before the replication configuration template")
}

// CreateLaunchConfigurationTemplate implements the operation.
func (c *Service) CreateLaunchConfigurationTemplate(ctx context.Context, in *mgn.CreateLaunchConfigurationTemplateRequest) (*mgn.LaunchConfigurationTemplate, error) {
	id, yes, no := newID("lct"), true, false
	out := &mgn.LaunchConfigurationTemplate{LaunchDisposition: "STARTED", TargetInstanceTypeRightSizingMethod: "NONE", BootMode: "USE_SOURCE",
		CopyPrivateIp: &no, CopyTags: &yes, EnableMapAutoTagging: &no, AssociatePublicIpAddress: &no, Licensing: &mgn.Licensing{OsByol: &no}}
	if err := errors.Join(c.ready(ctx), overlay(out, in)); err != nil {
		return nil, err
	}
	out.LaunchConfigurationTemplateID, out.Arn, out.Tags, out.Ec2LaunchTemplateID = id, c.arn(templateKinds["lct"], id), nil, newID("lt")
	if err := checkLaunch(out.LaunchDisposition, out.PostLaunchActions); err != nil {
		return nil, err
	}
	return out, c.createTemplate(ctx, "lct", id, out, in.Tags, &out.Tags)
}

// UpdateLaunchConfigurationTemplate implements the operation.
func (c *Service) UpdateLaunchConfigurationTemplate(ctx context.Context, in *mgn.UpdateLaunchConfigurationTemplateRequest) (out *mgn.LaunchConfigurationTemplate, err error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	id := in.LaunchConfigurationTemplateID
	err = c.db.update(ctx, func(tx *sql.Tx) error {
		doc, err := getTemplate[mgn.LaunchConfigurationTemplate](ctx, tx, "lct", id)
		if errors.Is(err, errNoTemplate) {
			return notFound(launchWord, id)
		}
		if err := errors.Join(err, overlay(&doc, in)); err != nil {
			return err
		}
		out = &doc
		if err := errors.Join(checkLaunch(doc.LaunchDisposition, doc.PostLaunchActions), c.putTemplate(ctx, tx, "lct", id, doc)); err != nil {
			return err
		}
		tags, err := tagsOf(ctx, tx, doc.Arn)
		out.Tags = tags[doc.Arn]
		return err
	})
	return out, err
}

// DescribeLaunchConfigurationTemplates implements the operation.
func (c *Service) DescribeLaunchConfigurationTemplates(ctx context.Context, in *mgn.DescribeLaunchConfigurationTemplatesRequest) (*mgn.DescribeLaunchConfigurationTemplatesResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	items, token, err := describeTemplates(ctx, c, "DescribeLaunchConfigurationTemplates", "lct", launchWord, in.LaunchConfigurationTemplateIDs,
		in.NextToken, in.MaxResults, func(t mgn.LaunchConfigurationTemplate) string { return t.LaunchConfigurationTemplateID })
	if err != nil {
		return nil, err
	}
	for i := range items {
		tags, err := tagsOf(ctx, c.db.reader, items[i].Arn)
		if err != nil {
			return nil, err
		}
		items[i].Tags = tags[items[i].Arn]
	}
	return &mgn.DescribeLaunchConfigurationTemplatesResponse{Items: items, NextToken: token}, nil
}

// DeleteLaunchConfigurationTemplate implements the operation.
func (c *Service) DeleteLaunchConfigurationTemplate(ctx context.Context, in *mgn.DeleteLaunchConfigurationTemplateRequest) (*mgn.DeleteLaunchConfigurationTemplateResponse, error) {
	if err := c.ready(ctx); err != nil {
		return nil, err
	}
	return &mgn.DeleteLaunchConfigurationTemplateResponse{}, c.deleteTemplate(ctx, "lct", launchWord, in.LaunchConfigurationTemplateID, "")
}

// templated gives a new source server its configurations, from the templates or
// as the service would make them without.
func (c *Service) templated(ctx context.Context, q querier, s *server) error {
	yes, no, zero := true, false, int64(0)
	s.Config = mgn.ReplicationConfiguration{AssociateDefaultSecurityGroup: &yes, BandwidthThrottling: &zero, CreatePublicIP: &no,
		DataPlaneRouting: "PRIVATE_IP", DefaultLargeStagingDiskType: "GP3", EbsEncryption: "DEFAULT", ReplicationServerInstanceType: "t3.small",
		UseDedicatedReplicationServer: &no, ReplicationServersSecurityGroupsIDs: []string{}, StagingAreaTags: mgn.TagsMap{}}
	s.Launch = mgn.LaunchConfiguration{LaunchDisposition: "STARTED", TargetInstanceTypeRightSizingMethod: "NONE", BootMode: "USE_SOURCE",
		CopyPrivateIp: &no, CopyTags: &yes, EnableMapAutoTagging: &no, Licensing: &mgn.Licensing{OsByol: &no}}
	rct, err := newest[mgn.ReplicationConfigurationTemplate](ctx, q, "rct")
	if err == nil {
		err = overlay(&s.Config, rct)
	}
	if err != nil && !errors.Is(err, errNoTemplate) {
		return fmt.Errorf("read replication template: %w", err)
	}
	lct, err := newest[mgn.LaunchConfigurationTemplate](ctx, q, "lct")
	if err == nil {
		err = overlay(&s.Launch, lct)
	}
	if err != nil && !errors.Is(err, errNoTemplate) {
		return fmt.Errorf("read launch template: %w", err)
	}
	s.Config.SourceServerID, s.Launch.SourceServerID, s.Launch.Ec2LaunchTemplateID = s.ID, s.ID, newID("lt")
	return nil
}
