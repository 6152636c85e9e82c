package api_test

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/service/iam"

	"rehost/identity"
)

// sound says what in a directory does not go together.
func sound(d *identity.Directory) (wrong []string) {
	_ = d.Read(func(tx *identity.Tx) error {
		complain := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
		ids, names := map[string]string{}, map[string]bool{}
		own := func(kind, name, id string) {
			if lower := kind + " " + strings.ToLower(name); names[lower] {
				complain("%s is there twice", lower)
			} else {
				names[lower] = true
			}
			if other := ids[id]; other != "" {
				complain("%s %s has the id of %s", kind, name, other)
			}
			ids[id] = kind + " " + name
		}
		attached := func(who string, arns []string) {
			for _, arn := range arns {
				if _, ok := tx.Policies.Get(arn); !ok {
					complain("%s has the policy %s, which is gone", who, arn)
				}
			}
		}
		for name, u := range tx.Users.Each() {
			own("user", u.Name, u.ID)
			attached(u.Name, u.Attached)
			if name != u.Name {
				complain("user %s is called %s", name, u.Name)
			}
			for _, g := range u.Groups {
				if _, ok := tx.Groups.Get(g); !ok {
					complain("%s is in the group %s, which is gone", name, g)
				}
			}
			if _, ok := tx.PoliciesOf("user", name); !ok {
				complain("the policies of %s are not in force", name)
			}
		}
		for name, g := range tx.Groups.Each() {
			own("group", g.Name, g.ID)
			attached(name, g.Attached)
			if name != g.Name {
				complain("group %s is called %s", name, g.Name)
			}
		}
		for arn, p := range tx.Policies.Each() {
			own("policy", arn, p.ID)
		}
		keys := map[string]int{}
		for id, k := range tx.Keys.Each() {
			if keys[k.User]++; keys[k.User] > 2 {
				complain("%s has %d keys", k.User, keys[k.User])
			}
			if _, ok := tx.Users.Get(k.User); !ok {
				complain("key %s is of %s, who is gone", id, k.User)
			}
		}
		return nil
	})
	return wrong
}

// TestIAM_Together lets many create, rename and delete the same few users, groups
// and policies at once, while others read and ask what they may do. Nothing is
// ever half there, no answer is one that IAM does not give, and a restart finds
// what was left.
func TestIAM_Together(t *testing.T) {
	s := newSite(t)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	const workers, rounds = 6, 20
	var clients []*sdk.Client
	for i := range workers { // each with its own limit of calls
		u := identity.User{Name: fmt.Sprint("worker", i), Attached: []string{identity.ManagedPolicy("AdministratorAccess")}}
		if err := s.directory.CreateUser(t.Context(), u); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, s.iam(keyOf(t, s, u.Name)))
	}
	stop := make(chan struct{})
	var readers, writers sync.WaitGroup
	readers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, what := range sound(s.directory) {
				t.Error(what)
			}
			p, _, err := s.directory.Authenticate(context.Background(), s.admin.AccessKeyID, "")
			if err != nil || !s.directory.Authorize(p, "iam:GetUser", "*", nil).Allowed {
				t.Errorf("the administrator may not read: %v", err)
			}
		}
	})
	var mu sync.Mutex
	answers := map[string]int{}
	for i, c := range clients {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		writers.Go(func() {
			for range rounds {
				name, do := meddle(s, c, r)
				err := do(context.Background())
				mu.Lock()
				answers[name+": "+answer(err)]++
				mu.Unlock()
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	done := 0
	for what, n := range answers {
		switch _, code, _ := strings.Cut(what, ": "); code {
		case "done":
			done += n
		case "NoSuchEntity", "EntityAlreadyExists", "DeleteConflict", "LimitExceeded":
		default:
			t.Errorf("%d times %s", n, what)
		}
	}
	if done < workers*rounds/8 {
		t.Errorf("only %d calls did something: %v", done, answers)
	}
	before := everything(s.directory)
	s.restart()
	if after := everything(s.directory); !maps.Equal(before, after) {
		t.Errorf("before the restart: %v\nafter it: %v", before, after)
	}
	for _, what := range sound(s.directory) {
		t.Errorf("after a restart: %s", what)
	}
}

func answer(err error) string {
	if err == nil {
		return "done"
	}
	return code(err)
}

// everything is what a directory has, for a comparison.
func everything(d *identity.Directory) map[string]string {
	out := map[string]string{}
	_ = d.Read(func(tx *identity.Tx) error {
		for name, u := range tx.Users.Each() {
			out["user "+name] = fmt.Sprint(u.ID, u.Path, u.Attached, u.Groups, u.Tags)
		}
		for name, g := range tx.Groups.Each() {
			out["group "+name] = fmt.Sprint(g.ID, g.Path, g.Attached)
		}
		for arn, p := range tx.Policies.Each() {
			out["policy "+arn] = fmt.Sprint(p.ID, p.Default, p.Document)
		}
		for id, k := range tx.Keys.Each() {
			out["key "+id] = k.User
		}
		return nil
	})
	return out
}

// meddle draws a call that gets in the way of others.
func meddle(s *site, c *sdk.Client, r *rand.Rand) (name string, do func(context.Context) error) {
	user, other := fmt.Sprint("user", r.IntN(3)), fmt.Sprint("User", r.IntN(3))
	group, next := fmt.Sprint("group", r.IntN(2)), fmt.Sprint("group", r.IntN(2))
	policyName := fmt.Sprint("policy", r.IntN(2))
	arn := "arn:aws:iam::" + s.directory.Account().ID + ":policy/" + policyName
	calls := map[string]func(context.Context) error{
		"create user": func(ctx context.Context) error {
			_, err := c.CreateUser(ctx, &sdk.CreateUserInput{UserName: &user})
			return err
		},
		"delete user": func(ctx context.Context) error {
			_, err := c.DeleteUser(ctx, &sdk.DeleteUserInput{UserName: &user})
			return err
		},
		"rename user": func(ctx context.Context) error {
			_, err := c.UpdateUser(ctx, &sdk.UpdateUserInput{UserName: &user, NewUserName: &other})
			return err
		},
		"rename user back": func(ctx context.Context) error {
			_, err := c.UpdateUser(ctx, &sdk.UpdateUserInput{UserName: &other, NewUserName: &user, NewPath: aws.String("/x/")})
			return err
		},
		"create key": func(ctx context.Context) error {
			_, err := c.CreateAccessKey(ctx, &sdk.CreateAccessKeyInput{UserName: &user})
			return err
		},
		"delete keys": func(ctx context.Context) error {
			list, err := c.ListAccessKeys(ctx, &sdk.ListAccessKeysInput{UserName: &user})
			if err != nil {
				return err
			}
			for _, k := range list.AccessKeyMetadata {
				if _, err := c.DeleteAccessKey(ctx, &sdk.DeleteAccessKeyInput{UserName: &user, AccessKeyId: k.AccessKeyId}); err != nil {
					return err
				}
			}
			return nil
		},
		"create group": func(ctx context.Context) error {
			_, err := c.CreateGroup(ctx, &sdk.CreateGroupInput{GroupName: &group})
			return err
		},
		"rename group": func(ctx context.Context) error {
			_, err := c.UpdateGroup(ctx, &sdk.UpdateGroupInput{GroupName: &group, NewGroupName: &next})
			return err
		},
		"delete group": func(ctx context.Context) error {
			_, err := c.DeleteGroup(ctx, &sdk.DeleteGroupInput{GroupName: &group})
			return err
		},
		"join group": func(ctx context.Context) error {
			_, err := c.AddUserToGroup(ctx, &sdk.AddUserToGroupInput{GroupName: &group, UserName: &user})
			return err
		},
		"leave group": func(ctx context.Context) error {
			_, err := c.RemoveUserFromGroup(ctx, &sdk.RemoveUserFromGroupInput{GroupName: &group, UserName: &user})
			return err
		},
		"create policy": func(ctx context.Context) error {
			_, err := c.CreatePolicy(ctx, &sdk.CreatePolicyInput{PolicyName: &policyName, PolicyDocument: aws.String(allow)})
			return err
		},
		"create version": func(ctx context.Context) error {
			_, err := c.CreatePolicyVersion(ctx, &sdk.CreatePolicyVersionInput{PolicyArn: &arn, SetAsDefault: true, PolicyDocument: aws.String(strings.Replace(allow, "GetUser", "ListUsers", 1))})
			return err
		},
		"delete policy": func(ctx context.Context) error {
			_, err := c.DeletePolicy(ctx, &sdk.DeletePolicyInput{PolicyArn: &arn})
			return err
		},
		"attach to user": func(ctx context.Context) error {
			_, err := c.AttachUserPolicy(ctx, &sdk.AttachUserPolicyInput{UserName: &user, PolicyArn: &arn})
			return err
		},
		"detach from user": func(ctx context.Context) error {
			_, err := c.DetachUserPolicy(ctx, &sdk.DetachUserPolicyInput{UserName: &user, PolicyArn: &arn})
			return err
		},
		"attach to group": func(ctx context.Context) error {
			_, err := c.AttachGroupPolicy(ctx, &sdk.AttachGroupPolicyInput{GroupName: &group, PolicyArn: &arn})
			return err
		},
		"detach from group": func(ctx context.Context) error {
			_, err := c.DetachGroupPolicy(ctx, &sdk.DetachGroupPolicyInput{GroupName: &group, PolicyArn: &arn})
			return err
		},
	}
	names := slices.Sorted(maps.Keys(calls))
	name = names[r.IntN(len(names))]
	return name, calls[name]
}
