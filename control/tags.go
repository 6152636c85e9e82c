package control

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"

	"rehost/awsapi/mgn"
)

const maxTags = 50

// kinds are the resources that have ARNs here, by the word in them, with the
// query that says whether one exists.
var kinds = map[string]string{
	"source-server":                      `SELECT 1 FROM source_servers WHERE id = ?`,
	"job":                                `SELECT 1 FROM jobs WHERE id = ?`,
	"replication-configuration-template": `SELECT 1 FROM templates WHERE id = ?`,
	"launch-configuration-template":      `SELECT 1 FROM templates WHERE id = ?`,
}

func (c *Service) arn(kind, id string) string {
	return fmt.Sprintf("arn:aws:mgn:%s:%s:%s/%s", c.opts.Region, c.opts.Account, kind, id)
}

// taggable says whether the resource exists.
func (c *Service) taggable(ctx context.Context, q querier, arn string) error {
	rest, ours := strings.CutPrefix(arn, c.arn("", "")[:len(c.arn("", ""))-1])
	kind, id, cut := strings.Cut(rest, "/")
	query, known := kinds[kind]
	if !strings.HasPrefix(arn, "arn:") {
		return invalid("resourceArn", "resourceArn %.100q is not an ARN", arn)
	}
	if !ours || !cut || !known {
		return notFound("Resource", arn)
	}
	var one int
	err := q.QueryRowContext(ctx, query, id).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return notFound("Resource", arn)
	}
	return err
}

// putTags sets tags of a resource, which must not have too many then.
func putTags(ctx context.Context, tx *sql.Tx, arn string, tags map[string]string) error {
	for name, value := range tags {
		if strings.HasPrefix(strings.ToLower(name), "aws:") {
			return invalid("tags", "tag keys that begin with aws: are reserved")
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO tags (arn, name, value) VALUES (?, ?, ?)
			ON CONFLICT (arn, name) DO UPDATE SET value = excluded.value`, arn, name, value); err != nil {
			return fmt.Errorf("tag %s: %w", arn, err)
		}
	}
	if len(tags) == 0 {
		return nil
	}
	var n int
	if err := tx.QueryRowContext(ctx, `SELECT COUNT(*) FROM tags WHERE arn = ?`, arn).Scan(&n); err != nil {
		return err
	}
	if n > maxTags {
		return invalid("tags", "a resource has at most %d tags, this would be %d", maxTags, n)
	}
	return nil
}

func dropTags(ctx context.Context, tx *sql.Tx, arn string) error {
	_, err := tx.ExecContext(ctx, `DELETE FROM tags WHERE arn = ?`, arn)
	return err
}

// tagsOf reads the tags of several resources at once.
func tagsOf(ctx context.Context, q querier, arns ...string) (map[string]mgn.TagsMap, error) {
	out := map[string]mgn.TagsMap{}
	for _, arn := range arns {
		out[arn] = mgn.TagsMap{}
	}
	for some := range slices.Chunk(arns, 500) {
		condition, args := in("arn", some, nil)
		if err := addTags(ctx, q, out, condition, args); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func addTags(ctx context.Context, q querier, to map[string]mgn.TagsMap, condition string, args []any) error {
	rows, err := q.QueryContext(ctx, `SELECT arn, name, value FROM tags WHERE `+condition, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var arn, name, value string
		if err := rows.Scan(&arn, &name, &value); err != nil {
			return err
		}
		to[arn][name] = value
	}
	return rows.Err()
}

// TagResource implements the operation.
func (c *Service) TagResource(ctx context.Context, in *mgn.TagResourceRequest) (*mgn.TagResourceResponse, error) {
	return &mgn.TagResourceResponse{}, c.db.update(ctx, func(tx *sql.Tx) error {
		if err := c.taggable(ctx, tx, in.ResourceArn); err != nil {
			return err
		}
		return putTags(ctx, tx, in.ResourceArn, in.Tags)
	})
}

// UntagResource implements the operation.
func (c *Service) UntagResource(ctx context.Context, req *mgn.UntagResourceRequest) (*mgn.UntagResourceResponse, error) {
	return &mgn.UntagResourceResponse{}, c.db.update(ctx, func(tx *sql.Tx) error {
		if err := c.taggable(ctx, tx, req.ResourceArn); err != nil {
			return err
		}
		if len(req.TagKeys) == 0 {
			return nil
		}
		condition, args := in("name", []string(req.TagKeys), []any{req.ResourceArn})
		_, err := tx.ExecContext(ctx, `DELETE FROM tags WHERE arn = ? AND `+condition, args...) //nolint:gosec // a condition is question marks
		return err
	})
}

// ListTagsForResource implements the operation.
func (c *Service) ListTagsForResource(ctx context.Context, in *mgn.ListTagsForResourceRequest) (*mgn.ListTagsForResourceResponse, error) {
	if err := c.taggable(ctx, c.db.reader, in.ResourceArn); err != nil {
		return nil, err
	}
	tags, err := tagsOf(ctx, c.db.reader, in.ResourceArn)
	if err != nil {
		return nil, err
	}
	return &mgn.ListTagsForResourceResponse{Tags: tags[in.ResourceArn]}, nil
}

// ResourceTags are the tags of a resource, for conditions on them; nil for one
// that is not there.
func (c *Service) ResourceTags(ctx context.Context, arn string) map[string]string {
	if !strings.HasPrefix(arn, c.groupARN("security-group", "")) && !strings.HasPrefix(arn, c.groupARN("security-group-rule", "")) && c.taggable(ctx, c.db.reader, arn) != nil {
		return nil
	}
	tags, err := tagsOf(ctx, c.db.reader, arn)
	if err != nil {
		c.log.Error("read tags", "resource", arn, "err", err)
		return nil
	}
	return tags[arn]
}
