// Package control is the service behind the API: it knows every source server,
// where it stands in its life and in its replication, what is to be done next,
// and does it.
//
//	API calls -> source servers, configurations, jobs and tags, in a database;
//	             commands for agents; machines launched from replicas
//
// What a call answers is durable before it is answered. What only measures
// (when an agent was last seen, how far a copy is) is kept in memory and
// written down every few seconds: it is worth nothing after a power cut.
package control
