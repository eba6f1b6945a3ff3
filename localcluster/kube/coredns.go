package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	// Only what a cluster's DNS needs. CoreDNS's default set links cloud SDKs that double the binary.
	// bind is what keeps it off the host's outer addresses.
	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/forward"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
)

func runCoreDNS() {
	// The order is the order in which plugins see a query; it replaces the generated list of all plugins.
	dnsserver.Directives = []string{"bind", "errors", "health", "ready", "kubernetes", "forward"}
	coremain.Run()
}
