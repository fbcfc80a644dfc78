// Package lab is a company in one process: what stands around the front door, so that the whole flow can be seen on one machine.
//
//	                        ┌────────────── Company ──────────────┐
//	resolver of a client ──→│ DNS      the scenario's zones       │
//	client ──→ front door ─→│ CAS      cas01, cas02: IIS-like     │
//	                        │          answers, Basic, NTLM       │
//	                        │ CA       a root, leaf certificates  │
//	                        │ Recorder who came on which          │
//	                        │          connection to which CAS    │
//	                        └─────────────────────────────────────┘
//
// A Scenario is one YAML file: zones, servers, mailboxes, the config of the front door, and what is expected to happen. Start brings
// it up on free ports of 127.0.0.1 and fills the ports into the config; the front door itself is run by whoever called Start, and is
// only ever spoken to over the wire. Flows are requests with an expected outcome that go through it, beside the walks of the
// discovery clients that Expectations lists.
//
// The parts of a simulated server that decide about logins are real: ntlm.go verifies NTLMv2 on the connection it came on, as IIS does,
// and is tested with clients written by others. The pages behind the login are as small as a client allows.
//
// Nothing here is fit for use outside a lab: passwords stand in the scenario, and every response names the user it was served to.
package lab
