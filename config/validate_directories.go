package config

import (
	"slices"
	"strconv"
	"strings"
	"time"
)

// vdirNeeds is what a protocol cannot do without: with less, its clients fail in ways that do not point here.
var vdirNeeds = map[string]struct {
	methods           []string
	request, response time.Duration // how long the client and the backend are silent in the ordinary course of things
	body              Size
	why               string
}{
	"owa":  {methods: []string{"GET", "POST"}, response: 5 * time.Minute, why: "OWA waits for news that long"},
	"ecp":  {methods: []string{"GET", "POST"}},
	"ews":  {methods: []string{"POST"}, response: 10 * time.Minute, why: "subscriptions wait for news that long"},
	"mapi": {methods: []string{"POST"}, response: 6 * time.Minute, body: 64 << 20, why: "Outlook waits for news for five minutes"},
	"rpc": {
		methods: []string{"RPC_IN_DATA", "RPC_OUT_DATA"}, request: 20 * time.Minute, response: 20 * time.Minute, body: 2 << 30,
		why: "the channels of Outlook Anywhere are silent for up to a quarter of an hour, and announce up to 2 GiB",
	},
	"oab":          {methods: []string{"GET", "HEAD"}},
	"autodiscover": {methods: []string{"GET", "POST"}},
	"activesync":   {methods: []string{"POST", "OPTIONS"}, response: 61 * time.Minute, why: "phones wait for news for up to 59 minutes"},
}

func init() { vdirNeeds["rpcwithcert"] = vdirNeeds["rpc"] }

// mrsProxy is where mailboxes are moved through.
const mrsProxy = "/ews/mrsproxy.svc"

func (v validator) virtualDirectories(p path, h *Host) {
	for _, key := range sortedKeys(h.VirtualDirectories) {
		q := p.key(key)
		if v.bad(q) {
			continue
		}
		dir := h.VirtualDirectories[key]
		v.vdirNeeds(q, key, dir)
		if v.has(q.key("methods")) && !v.bad(q.key("methods")) && len(dir.Methods) == 0 {
			v.fail(q.key("methods"), RuleEmptyValue, "the methods that are let through; or access: deny", "the list is empty")
		}
		if !strings.HasPrefix(key, "/") {
			continue
		}
		for name, known := range vdirPaths {
			if key == known {
				v.failKey(q, RuleVdirNamed, name+", which brings the methods and timeouts of its protocol", "%s is the virtual directory %s", key, name)
			}
		}
		if !v.has(q.key("access")) && v.entries[q.String()].shape == shapeMap {
			v.fail(q.key("access"), RuleVdirAccess, "access: publish, internal or deny", "it is not said who may reach %s", key)
		}
		if s := v.c.Sites[h.Site]; s != nil && s.Offload && dir.Access != "deny" && (key == mrsProxy || strings.HasPrefix(key, mrsProxy+"/")) {
			v.failKey(q, RuleVdirInClear, "a site with https:// servers and without offload", "%s does not go over plain HTTP, and the site %s is spoken to in clear", key, h.Site)
		}
	}
}

// vdirNeeds warns about what would break the clients of a published directory.
func (v validator) vdirNeeds(p path, name string, dir *VirtualDirectory) {
	need, ok := vdirNeeds[name]
	if !ok || dir.Access == "deny" {
		return
	}
	for _, limit := range []struct {
		key       string
		is, least time.Duration
	}{{"request_timeout", dir.RequestTimeout, need.request}, {"response_timeout", dir.ResponseTimeout, need.response}} {
		if limit.is > 0 && limit.is < limit.least {
			v.warn(p.key(limit.key), RuleVdirNeeds, shortDuration(limit.least)+" or more, or the line removed", "%s of %s cuts requests that are well: %s",
				shortDuration(limit.is), name, need.why)
		}
	}
	// A number alone is bytes: whoever writes 64 means MiB.
	if least := max(need.body, 1<<10); dir.MaxBody > 0 && dir.MaxBody < least {
		v.warn(p.key("max_body"), RuleVdirNeeds, least.String()+" or more, or none", "max_body: %s refuses requests that clients of %s need to make", dir.MaxBody, name)
	}
	if len(dir.Methods) == 0 {
		return
	}
	for _, m := range need.methods {
		if !slices.Contains(dir.Methods, m) {
			v.warn(p.key("methods"), RuleVdirNeeds, m+" in the list, or the line removed", "the clients of %s cannot do without %s", name, m)
		}
	}
}

// shortDuration writes a duration as people do: 61m, not 1h1m0s.
func shortDuration(d time.Duration) string {
	if d%time.Minute == 0 {
		return strconv.FormatInt(int64(d/time.Minute), 10) + "m"
	}
	return d.String()
}
