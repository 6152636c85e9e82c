// Package site runs the real programs, rehost and rehost-agent, as the processes
// that people run, and speaks to them as people do: by command line and through
// the stock AWS SDK. Arguments go in, a running service comes out.
package site

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/mgn"
	"github.com/aws/aws-sdk-go-v2/service/mgn/types"

	"rehost/ca"
)

// Region is the one that services here are in.
const Region = "us-east-1"

// A Config says how a service runs.
type Config struct {
	Program         string // rehost
	Data            string // its directory
	Port            int    // of the API, on loopback; 0 takes a free one
	ReplicationPort int    // on loopback; 0 takes a free one
	Advertise       string // what agents are told to connect to
	Args            []string
	Log             io.Writer
}

// A Service is one `rehost serve`.
type Service struct {
	*Process
	Config          // with the ports chosen
	Endpoint string // https://127.0.0.1:PORT
	API      *mgn.Client
}

// FreePort asks the kernel for a TCP port on loopback that is free now.
func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// Serve starts a service and waits until it says that it is ready.
func Serve(ctx context.Context, c Config) (*Service, error) {
	for _, port := range []*int{&c.Port, &c.ReplicationPort} {
		if *port == 0 {
			var err error
			if *port, err = FreePort(); err != nil {
				return nil, err
			}
		}
	}
	p, err := Start(ctx, c.Log, "ready", c.Program, append([]string{"serve", "--data", c.Data, "--region", Region,
		"--listen", fmt.Sprintf("127.0.0.1:%d", c.Port), "--replication-listen", fmt.Sprintf("127.0.0.1:%d", c.ReplicationPort),
		"--advertise", c.Advertise}, c.Args...)...)
	if err != nil {
		return nil, err
	}
	s := &Service{Process: p, Config: c, Endpoint: fmt.Sprintf("https://127.0.0.1:%d", c.Port)}
	id, secret, err := ReadCredentials(filepath.Join(c.Data, "credentials"))
	if err == nil {
		s.API, err = s.Client(credentials.NewStaticCredentialsProvider(id, secret, ""))
	}
	if err != nil {
		return nil, errors.Join(err, p.Kill())
	}
	return s, nil
}

// Client is the stock AWS SDK with the CA that the service wrote at its first start.
func (s *Service) Client(keys aws.CredentialsProvider, options ...func(*mgn.Options)) (*mgn.Client, error) {
	roots, err := s.Roots()
	if err != nil {
		return nil, err
	}
	o := mgn.Options{
		Region: Region, BaseEndpoint: aws.String(s.Endpoint), Credentials: keys,
		HTTPClient: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}},
	}
	for _, set := range options {
		set(&o)
	}
	return mgn.New(o), nil
}

// Roots are what a client of the service has to believe.
func (s *Service) Roots() (*x509.CertPool, error) {
	pem, err := os.ReadFile(filepath.Join(s.Data, "ca.pem"))
	if err != nil {
		return nil, fmt.Errorf("read the service's CA: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errors.New("the service's ca.pem holds no certificate")
	}
	return roots, nil
}

// Fingerprint is what an installer pins the service's CA by.
func (s *Service) Fingerprint() (string, error) {
	text, err := os.ReadFile(filepath.Join(s.Data, "ca.pem"))
	if err != nil {
		return "", fmt.Errorf("read the service's CA: %w", err)
	}
	certs, err := ca.DecodeCertificates(text)
	if err != nil {
		return "", fmt.Errorf("read the service's CA: %w", err)
	}
	return ca.Fingerprint(certs[0]), nil
}

// ReadCredentials reads the profile rehost of an AWS credentials file.
func ReadCredentials(path string) (id, secret string, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", "", fmt.Errorf("read an access key: %w", err)
	}
	section := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			section = strings.Trim(line, "[]")
		}
		name, value, _ := strings.Cut(line, "=")
		if section != "rehost" {
			continue
		}
		switch strings.TrimSpace(name) {
		case "aws_access_key_id":
			id = strings.TrimSpace(value)
		case "aws_secret_access_key":
			secret = strings.TrimSpace(value)
		}
	}
	if id == "" || secret == "" {
		return "", "", fmt.Errorf("%s has no profile rehost with a key", path)
	}
	return id, secret, nil
}

// SetUp prepares the account as the console's first page would.
func (s *Service) SetUp(ctx context.Context) error {
	if _, err := s.API.InitializeService(ctx, &mgn.InitializeServiceInput{}); err != nil {
		return fmt.Errorf("initialize the service: %w", err)
	}
	_, err := s.API.CreateReplicationConfigurationTemplate(ctx, &mgn.CreateReplicationConfigurationTemplateInput{
		AssociateDefaultSecurityGroup:       aws.Bool(true),
		BandwidthThrottling:                 0,
		CreatePublicIP:                      aws.Bool(false),
		DataPlaneRouting:                    types.ReplicationConfigurationDataPlaneRoutingPrivateIp,
		DefaultLargeStagingDiskType:         types.ReplicationConfigurationDefaultLargeStagingDiskTypeGp3,
		EbsEncryption:                       types.ReplicationConfigurationEbsEncryptionDefault,
		ReplicationServerInstanceType:       aws.String("t3.small"),
		ReplicationServersSecurityGroupsIDs: []string{},
		StagingAreaSubnetId:                 aws.String("subnet-0123456789abcdef0"),
		StagingAreaTags:                     map[string]string{},
		UseDedicatedReplicationServer:       aws.Bool(false),
	})
	if err != nil {
		return fmt.Errorf("create the replication template: %w", err)
	}
	if _, err := s.API.CreateLaunchConfigurationTemplate(ctx, &mgn.CreateLaunchConfigurationTemplateInput{}); err != nil {
		return fmt.Errorf("create the launch template: %w", err)
	}
	return nil
}

// Server asks for the one source server that is not archived.
func (s *Service) Server(ctx context.Context) (types.SourceServer, error) {
	out, err := s.API.DescribeSourceServers(ctx, &mgn.DescribeSourceServersInput{Filters: &types.DescribeSourceServersRequestFilters{}})
	if err != nil {
		return types.SourceServer{}, err
	}
	if len(out.Items) != 1 {
		return types.SourceServer{}, fmt.Errorf("there are %d source servers, not 1", len(out.Items))
	}
	return out.Items[0], nil
}
