package identity

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A Provider is an issuer of OpenID Connect whose tokens can stand for a
// principal. Only issuers that were made known so are ever asked for their keys.
type Provider struct {
	ARN         string            `json:"arn"` // arn:aws:iam::…:oidc-provider/host/path
	URL         string            `json:"url"` // https://host/path, as its tokens have it in "iss"
	Clients     []string          `json:"clients"`
	Thumbprints []string          `json:"thumbprints,omitempty"` // SHA-1 in hexadecimal, of authorities of its TLS certificate
	Tags        map[string]string `json:"tags,omitempty"`
	Created     time.Time         `json:"created"`
}

// KindProvider is where providers are kept, by ARN.
const KindProvider Kind = "oidc-provider"

// Limits of a provider, as IAM has them.
const (
	maxProviders      = 100
	maxProviderURL    = 255
	maxProviderClient = 100
	maxThumbprints    = 5
)

const providerType = ":oidc-provider/"

// issuer is what stands before the colon of the provider's condition keys.
func issuer(arn string) string {
	_, name, _ := strings.Cut(arn, providerType)
	return name
}

var (
	thumbprintForm = regexp.MustCompile(`^[0-9A-Fa-f]{40}$`)
	issuerForm     = regexp.MustCompile(`^[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?$`)
)

// check fills in the ARN and refuses what could be read in two ways.
func (p *Provider) check(account string) error {
	u, err := url.Parse(p.URL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || len(p.URL) > maxProviderURL {
		return validation("Invalid Open ID Connect Provider URL: want https://host/path")
	}
	name := strings.TrimSuffix(strings.TrimPrefix(p.URL, "https://"), "/")
	if !issuerForm.MatchString(name) || strings.Contains(name, "//") || strings.Contains(name, "..") {
		return validation("Invalid Open ID Connect Provider URL: want https://host/path")
	}
	p.ARN = "arn:aws:iam::" + account + providerType + name
	if len(p.Clients) > maxProviderClient || len(p.Thumbprints) > maxThumbprints {
		return validation("A provider may have %d client ids and %d thumbprints", maxProviderClient, maxThumbprints)
	}
	for _, c := range p.Clients {
		if c == "" || len(c) > 255 {
			return validation("A client id has 1 to 255 characters")
		}
	}
	for _, t := range p.Thumbprints {
		if !thumbprintForm.MatchString(t) {
			return validation("A thumbprint is the SHA-1 of a certificate in 40 hexadecimal digits")
		}
	}
	return nil
}

// CreateProvider makes an issuer known and returns its ARN. The errors are
// [ErrExists] and a [*RequestError].
func (d *Directory) CreateProvider(ctx context.Context, p Provider) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := p.check(d.account.ID); err != nil {
		return "", err
	}
	switch {
	case d.providers[p.ARN] != nil:
		return "", fmt.Errorf("create provider %s: %w", p.ARN, ErrExists)
	case len(d.providers) >= maxProviders:
		return "", validation("Cannot exceed quota for OpenIdConnectProvidersPerAccount: %d", maxProviders)
	}
	p.Created = d.now().UTC()
	return p.ARN, d.setProvider(ctx, p)
}

func (d *Directory) setProvider(ctx context.Context, p Provider) error {
	if err := d.put(ctx, KindProvider, p.ARN, p); err != nil {
		return fmt.Errorf("provider %s: %w", p.ARN, err)
	}
	d.providers[p.ARN] = &p
	return nil
}

// UpdateProvider changes clients, thumbprints or tags. Change gets a copy whose
// lists and maps it must replace and not write to.
func (d *Directory) UpdateProvider(ctx context.Context, arn string, change func(*Provider) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	held := d.providers[arn]
	if held == nil {
		return fmt.Errorf("provider %s: %w", arn, ErrNotFound)
	}
	p := *held
	if err := change(&p); err != nil {
		return err
	}
	p.URL, p.Created = held.URL, held.Created
	if err := p.check(d.account.ID); err != nil {
		return err
	}
	return d.setProvider(ctx, p)
}

// DeleteProvider forgets an issuer and ends the sessions that began with its
// tokens. The error can be [ErrNotFound].
func (d *Directory) DeleteProvider(ctx context.Context, arn string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.providers[arn] == nil {
		return fmt.Errorf("delete provider %s: %w", arn, ErrNotFound)
	}
	if err := d.store.Delete(ctx, KindProvider, arn); err != nil {
		return fmt.Errorf("delete provider %s: %w", arn, err)
	}
	delete(d.providers, arn)
	return nil
}

// Provider returns an issuer by its ARN. The error can be [ErrNotFound].
func (d *Directory) Provider(arn string) (Provider, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if p := d.providers[arn]; p != nil {
		return *p, nil
	}
	return Provider{}, fmt.Errorf("provider %.200s: %w", arn, ErrNotFound)
}

// Providers lists the ARNs of the issuers, sorted.
func (d *Directory) Providers() []string {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return slices.Sorted(maps.Keys(d.providers))
}

// ProviderOf finds the issuer of a token by its claim "iss", which has to be
// the URL letter by letter. The error can be [ErrNotFound].
func (d *Directory) ProviderOf(iss string) (Provider, error) {
	d.mu.RLock()
	defer d.mu.RUnlock()
	for _, p := range d.providers {
		if p.URL == iss {
			return *p, nil
		}
	}
	return Provider{}, fmt.Errorf("provider of issuer %.200q: %w", iss, ErrNotFound)
}
