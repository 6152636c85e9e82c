package api

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"rehost/awsapi"
	"rehost/awsapi/iam"
	"rehost/identity"
)

// Providers answers the calls of IAM about providers of OpenID Connect.
type Providers struct{ Directory *identity.Directory }

// Register makes the server answer them; it must serve [iam.Service].
func (p *Providers) Register(server *awsapi.Server) {
	awsapi.Handle(server, iam.CreateOpenIDConnectProvider, p.create)
	awsapi.Handle(server, iam.GetOpenIDConnectProvider, p.get)
	awsapi.Handle(server, iam.ListOpenIDConnectProviders, p.list)
	awsapi.Handle(server, iam.DeleteOpenIDConnectProvider, p.delete)
	awsapi.Handle(server, iam.AddClientIDToOpenIDConnectProvider, p.addClient)
	awsapi.Handle(server, iam.RemoveClientIDFromOpenIDConnectProvider, p.removeClient)
	awsapi.Handle(server, iam.UpdateOpenIDConnectProviderThumbprint, p.updateThumbprint)
	awsapi.Handle(server, iam.TagOpenIDConnectProvider, p.tag)
	awsapi.Handle(server, iam.UntagOpenIDConnectProvider, p.untag)
	awsapi.Handle(server, iam.ListOpenIDConnectProviderTags, p.listTags)
}

// providerError is the answer to what the directory refuses.
func providerError(err error) error {
	var e *identity.RequestError
	switch {
	case errors.As(err, &e):
		return iam.InvalidInputException.Errorf("%s", e.Message)
	case errors.Is(err, identity.ErrExists):
		return iam.EntityAlreadyExistsException.Errorf("Provider with this url already exists.")
	case errors.Is(err, identity.ErrNotFound):
		return iam.NoSuchEntityException.Errorf("OpenIDConnect Provider not found for this arn")
	}
	return err
}

func (p *Providers) create(ctx context.Context, in *iam.CreateOpenIDConnectProviderRequest) (*iam.CreateOpenIDConnectProviderResponse, error) {
	tags, err := withTags(nil, in.Tags)
	if err != nil {
		return nil, err
	}
	arn, err := p.Directory.CreateProvider(ctx, identity.Provider{URL: in.Url, Clients: in.ClientIDList, Thumbprints: in.ThumbprintList, Tags: tags})
	if err != nil {
		return nil, providerError(err)
	}
	return &iam.CreateOpenIDConnectProviderResponse{OpenIDConnectProviderArn: arn, Tags: in.Tags}, nil
}

func (p *Providers) get(_ context.Context, in *iam.GetOpenIDConnectProviderRequest) (*iam.GetOpenIDConnectProviderResponse, error) {
	provider, err := p.Directory.Provider(in.OpenIDConnectProviderArn)
	if err != nil {
		return nil, providerError(err)
	}
	return &iam.GetOpenIDConnectProviderResponse{Url: strings.TrimPrefix(provider.URL, "https://"), ClientIDList: provider.Clients, ThumbprintList: provider.Thumbprints,
		CreateDate: &awsapi.Timestamp{Time: provider.Created}, Tags: tagList(provider.Tags)}, nil
}

func (p *Providers) list(context.Context, *iam.ListOpenIDConnectProvidersRequest) (*iam.ListOpenIDConnectProvidersResponse, error) {
	out := &iam.ListOpenIDConnectProvidersResponse{OpenIDConnectProviderList: []iam.OpenIDConnectProviderListEntry{}}
	for _, arn := range p.Directory.Providers() {
		out.OpenIDConnectProviderList = append(out.OpenIDConnectProviderList, iam.OpenIDConnectProviderListEntry{Arn: arn})
	}
	return out, nil
}

// delete answers yes to one that is not there, as IAM does.
func (p *Providers) delete(ctx context.Context, in *iam.DeleteOpenIDConnectProviderRequest) (*iam.DeleteOpenIDConnectProviderResponse, error) {
	if err := p.Directory.DeleteProvider(ctx, in.OpenIDConnectProviderArn); err != nil && !errors.Is(err, identity.ErrNotFound) {
		return nil, providerError(err)
	}
	return nil, nil
}

func (p *Providers) change(ctx context.Context, arn string, change func(*identity.Provider) error) error {
	if err := p.Directory.UpdateProvider(ctx, arn, change); err != nil {
		return providerError(err)
	}
	return nil
}

func (p *Providers) addClient(ctx context.Context, in *iam.AddClientIDToOpenIDConnectProviderRequest) (*iam.AddClientIDToOpenIDConnectProviderResponse, error) {
	return nil, p.change(ctx, in.OpenIDConnectProviderArn, func(held *identity.Provider) error {
		if !slices.Contains(held.Clients, in.ClientID) {
			held.Clients = append(slices.Clone(held.Clients), in.ClientID)
		}
		return nil
	})
}

func (p *Providers) removeClient(ctx context.Context, in *iam.RemoveClientIDFromOpenIDConnectProviderRequest) (*iam.RemoveClientIDFromOpenIDConnectProviderResponse, error) {
	return nil, p.change(ctx, in.OpenIDConnectProviderArn, func(held *identity.Provider) error {
		held.Clients = slices.DeleteFunc(slices.Clone(held.Clients), func(c string) bool { return c == in.ClientID })
		return nil
	})
}

func (p *Providers) updateThumbprint(ctx context.Context, in *iam.UpdateOpenIDConnectProviderThumbprintRequest) (*iam.UpdateOpenIDConnectProviderThumbprintResponse, error) {
	return nil, p.change(ctx, in.OpenIDConnectProviderArn, func(held *identity.Provider) error {
		held.Thumbprints = in.ThumbprintList
		return nil
	})
}

func (p *Providers) tag(ctx context.Context, in *iam.TagOpenIDConnectProviderRequest) (*iam.TagOpenIDConnectProviderResponse, error) {
	return nil, p.change(ctx, in.OpenIDConnectProviderArn, func(held *identity.Provider) (err error) {
		held.Tags, err = withTags(held.Tags, in.Tags)
		return err
	})
}

func (p *Providers) untag(ctx context.Context, in *iam.UntagOpenIDConnectProviderRequest) (*iam.UntagOpenIDConnectProviderResponse, error) {
	return nil, p.change(ctx, in.OpenIDConnectProviderArn, func(held *identity.Provider) error {
		held.Tags = maps.Clone(held.Tags)
		for _, key := range in.TagKeys {
			delete(held.Tags, key)
		}
		return nil
	})
}

func (p *Providers) listTags(_ context.Context, in *iam.ListOpenIDConnectProviderTagsRequest) (*iam.ListOpenIDConnectProviderTagsResponse, error) {
	provider, err := p.Directory.Provider(in.OpenIDConnectProviderArn)
	if err != nil {
		return nil, providerError(err)
	}
	return &iam.ListOpenIDConnectProviderTagsResponse{Tags: tagList(provider.Tags)}, nil
}

// maxTags is how many tags one thing may have.
const maxTags = 50

// withTags lays tags over those that there are.
func withTags(held map[string]string, more []iam.Tag) (map[string]string, error) {
	out := maps.Clone(held)
	if out == nil {
		out = map[string]string{}
	}
	for _, t := range more {
		out[t.Key] = t.Value
	}
	if len(out) > maxTags {
		return nil, iam.LimitExceededException.Errorf("Cannot exceed quota for TagsPerResource: %d", maxTags)
	}
	return out, nil
}

func tagList(tags map[string]string) []iam.Tag {
	out := []iam.Tag{}
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		out = append(out, iam.Tag{Key: key, Value: tags[key]})
	}
	return out
}
