package api

import (
	"context"
	"errors"
	"slices"
	"strings"

	"rehost/awsapi"
	"rehost/awsapi/iam"
	"rehost/identity"
)

// providers answers the calls of IAM about providers of OpenID Connect.
type providers struct{ directory *identity.Directory }

func (p *providers) register(server *awsapi.Server) {
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

// providerError is the answer to what the directory refuses of a provider, which
// is called by its ARN, or by its URL as long as it has none.
func providerError(name string, err error) error {
	var e *identity.RequestError
	switch {
	case errors.As(err, &e):
		return iam.InvalidInputException.Errorf("%s", e.Message)
	case errors.Is(err, identity.ErrExists):
		return iam.EntityAlreadyExistsException.Errorf("Provider with url %s already exists.", name)
	case errors.Is(err, identity.ErrNotFound):
		return iam.NoSuchEntityException.Errorf("OpenIDConnect Provider not found for arn %s", name)
	}
	return err
}

func (p *providers) create(ctx context.Context, in *iam.CreateOpenIDConnectProviderRequest) (*iam.CreateOpenIDConnectProviderResponse, error) {
	tags, err := tagged(nil, in.Tags)
	if err != nil {
		return nil, err
	}
	arn, err := p.directory.CreateProvider(ctx, identity.Provider{URL: in.Url, Clients: in.ClientIDList, Thumbprints: in.ThumbprintList, Tags: tags})
	if err != nil {
		return nil, providerError(in.Url, err)
	}
	return &iam.CreateOpenIDConnectProviderResponse{OpenIDConnectProviderArn: arn, Tags: in.Tags}, nil
}

func (p *providers) get(_ context.Context, in *iam.GetOpenIDConnectProviderRequest) (*iam.GetOpenIDConnectProviderResponse, error) {
	provider, err := p.directory.Provider(in.OpenIDConnectProviderArn)
	if err != nil {
		return nil, providerError(in.OpenIDConnectProviderArn, err)
	}
	return &iam.GetOpenIDConnectProviderResponse{Url: strings.TrimPrefix(provider.URL, "https://"), ClientIDList: provider.Clients, ThumbprintList: provider.Thumbprints,
		CreateDate: &awsapi.Timestamp{Time: provider.Created}, Tags: tagList(provider.Tags)}, nil
}

func (p *providers) list(context.Context, *iam.ListOpenIDConnectProvidersRequest) (*iam.ListOpenIDConnectProvidersResponse, error) {
	out := &iam.ListOpenIDConnectProvidersResponse{OpenIDConnectProviderList: []iam.OpenIDConnectProviderListEntry{}}
	for _, arn := range p.directory.Providers() {
		out.OpenIDConnectProviderList = append(out.OpenIDConnectProviderList, iam.OpenIDConnectProviderListEntry{Arn: arn})
	}
	return out, nil
}

// delete answers yes to one that is not there, as IAM does.
func (p *providers) delete(ctx context.Context, in *iam.DeleteOpenIDConnectProviderRequest) (*iam.DeleteOpenIDConnectProviderResponse, error) {
	if err := p.directory.DeleteProvider(ctx, in.OpenIDConnectProviderArn); err != nil && !errors.Is(err, identity.ErrNotFound) {
		return nil, providerError(in.OpenIDConnectProviderArn, err)
	}
	return nil, nil
}

func (p *providers) change(ctx context.Context, arn string, change func(*identity.Provider) error) error {
	if err := p.directory.UpdateProvider(ctx, arn, change); err != nil {
		return providerError(arn, err)
	}
	return nil
}

func (p *providers) addClient(ctx context.Context, in *iam.AddClientIDToOpenIDConnectProviderRequest) (*iam.AddClientIDToOpenIDConnectProviderResponse, error) {
	return nil, p.change(ctx, in.OpenIDConnectProviderArn, func(held *identity.Provider) error {
		if !slices.Contains(held.Clients, in.ClientID) {
			held.Clients = append(slices.Clone(held.Clients), in.ClientID)
		}
		return nil
	})
}

func (p *providers) removeClient(ctx context.Context, in *iam.RemoveClientIDFromOpenIDConnectProviderRequest) (*iam.RemoveClientIDFromOpenIDConnectProviderResponse, error) {
	return nil, p.change(ctx, in.OpenIDConnectProviderArn, func(held *identity.Provider) error {
		held.Clients = slices.DeleteFunc(slices.Clone(held.Clients), func(c string) bool { return c == in.ClientID })
		return nil
	})
}

func (p *providers) updateThumbprint(ctx context.Context, in *iam.UpdateOpenIDConnectProviderThumbprintRequest) (*iam.UpdateOpenIDConnectProviderThumbprintResponse, error) {
	return nil, p.change(ctx, in.OpenIDConnectProviderArn, func(held *identity.Provider) error {
		held.Thumbprints = in.ThumbprintList
		return nil
	})
}

func (p *providers) tag(ctx context.Context, in *iam.TagOpenIDConnectProviderRequest) (*iam.TagOpenIDConnectProviderResponse, error) {
	return nil, p.change(ctx, in.OpenIDConnectProviderArn, func(held *identity.Provider) (err error) {
		held.Tags, err = tagged(held.Tags, in.Tags)
		return err
	})
}

func (p *providers) untag(ctx context.Context, in *iam.UntagOpenIDConnectProviderRequest) (*iam.UntagOpenIDConnectProviderResponse, error) {
	return nil, p.change(ctx, in.OpenIDConnectProviderArn, func(held *identity.Provider) error {
		held.Tags = untagged(held.Tags, in.TagKeys)
		return nil
	})
}

func (p *providers) listTags(_ context.Context, in *iam.ListOpenIDConnectProviderTagsRequest) (*iam.ListOpenIDConnectProviderTagsResponse, error) {
	provider, err := p.directory.Provider(in.OpenIDConnectProviderArn)
	if err != nil {
		return nil, providerError(in.OpenIDConnectProviderArn, err)
	}
	return &iam.ListOpenIDConnectProviderTagsResponse{Tags: tagList(provider.Tags)}, nil
}
