// Package launchtest holds the suite that every [launch.Target] has to pass. In
// goes a function that makes a target, out comes a verdict:
//
//	launchtest.Run(t, func(t *testing.T) launch.Target { … })
//
// Its guests are single boot sectors, so that the suite is quick without KVM.
package launchtest
