package agent

import "os"

// A Proxy is how HTTPS leaves this machine, as the environment variables
// HTTPS_PROXY and NO_PROXY say it. Replication (port 1500) does not go through it.
type Proxy struct {
	HTTPS string `json:"https,omitempty"` // URL; it may hold a password
	None  string `json:"none,omitempty"`  // hosts that are reached without it
}

// EnvironmentProxy is what this process was told.
func EnvironmentProxy() Proxy {
	first := func(names ...string) string {
		for _, name := range names {
			if v := os.Getenv(name); v != "" {
				return v
			}
		}
		return ""
	}
	return Proxy{first("HTTPS_PROXY", "https_proxy"), first("NO_PROXY", "no_proxy")}
}

// heedProxy has this process use the proxy of the installation, if it was told
// none itself: a service manager passes no environment on. It is of use before
// the first connection only.
func (c Config) heedProxy() {
	if c.Proxy.HTTPS == "" || EnvironmentProxy() != (Proxy{}) {
		return
	}
	// Neither can have a zero byte in it, as both came out of an environment.
	_ = os.Setenv("HTTPS_PROXY", c.Proxy.HTTPS)
	_ = os.Setenv("NO_PROXY", c.Proxy.None)
}
