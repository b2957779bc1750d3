package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	remotegpuv1 "github.com/remotegpu/remotegpu/gen/remotegpu/v1"
)

const dnsHelp = `An environment has names as long as it has an address: ENVIRONMENT.PROJECT.ZONE
and everything below it, and ENVIRONMENT.ZONE for those of its project. Records
that are added go with their environment. Where a project is called as an
environment, names below the environment are found by the whole name alone.`

func (a *app) dnsCommand() *cobra.Command {
	cmd := group("dns", "Names of environments", a.dnsList(), a.dnsAdd(), a.dnsRemove())
	cmd.Long = dnsHelp
	return cmd
}

func dnsTypes() []string { return []string{"a", "aaaa", "cname", "txt", "srv"} }

func (a *app) dnsList() *cobra.Command {
	request := &remotegpuv1.ListDNSRecordsRequest{}
	var source string
	var page paging
	var q quiet
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Short: "List DNS records by name", Args: cobra.NoArgs,
		Long: `ls lists DNS records. Those without an id are the node's own, as they are seen
from outside of environments. NAME is within PROJECT.ZONE.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			request.Project = a.project
			if q.on {
				source = orElse(source, "user") // so that a page is full of those
			}
			if source != "" {
				found, err := parseEnums[remotegpuv1.DNSRecordSource]([]string{source}, "source", "DNS_RECORD_SOURCE_", remotegpuv1.DNSRecordSource_value)
				if err != nil {
					return err
				}
				request.Source = found[0]
			}
			if q.on && request.GetSource() == remotegpuv1.DNSRecordSource_DNS_RECORD_SOURCE_AUTO {
				return usagef("leave --quiet out", "the node's own records have no ids")
			}
			all, next, err := pages(&page, func(size int32, token string) ([]*remotegpuv1.DNSRecord, string, error) {
				request.PageSize, request.PageToken = size, token
				response, err := c.dns.ListDNSRecords(cmd.Context(), request)
				return response.GetRecords(), response.GetNextPageToken(), err
			})
			if err != nil {
				return err
			}
			if q.on {
				return identifiers(a, all, (*remotegpuv1.DNSRecord).GetId)
			}
			if a.output == "json" {
				return a.json(&remotegpuv1.ListDNSRecordsResponse{Records: all, NextPageToken: next})
			}
			return a.dnsTable(all)
		},
	}
	cmd.Flags().StringVar(&request.Environment, "env", "", "only those of this environment")
	cmd.Flags().StringVar(&source, "source", "", "only those made by the node (auto) or by somebody (user)")
	page.register(a, cmd, 0)
	q.register(a, cmd, "ids of records that were added")
	filters(cmd, "env", "source")
	a.complete(cmd, "source", "auto", "user")
	a.completeWith(cmd, "env", a.completeEnvs)
	return cmd
}

func (a *app) dnsTable(records []*remotegpuv1.DNSRecord) error {
	rows := make([][]string, 0, len(records))
	for _, r := range records {
		rows = append(rows, []string{
			orElse(r.GetId(), "-"), r.GetProject(), r.GetName(), strings.ToUpper(state(r.GetType(), "DNS_RECORD_TYPE_")),
			fmt.Sprint(r.GetTtl()), orElse(r.GetData(), "-"), state(r.GetSource(), "DNS_RECORD_SOURCE_"), r.GetEnvironmentName(),
		})
	}
	return a.table([]string{"ID", "PROJECT", "NAME", "TYPE", "TTL", "DATA", "SOURCE", "ENVIRONMENT"}, rows)
}

func (a *app) dnsAdd() *cobra.Command {
	request, w := &remotegpuv1.CreateDNSRecordRequest{}, &waiting{}
	var labels []string
	cmd := &cobra.Command{
		Use: "add ENVIRONMENT NAME [TYPE [DATA...]]", Aliases: []string{"create"}, Short: "Add a DNS record to an environment's names",
		Args: cobra.MinimumNArgs(2), ValidArgsFunction: a.completeDNSAdd,
		Long: `add adds a record. NAME is the environment's own ("@"), below it ("www.demo" for
the environment demo), or one label beside it ("www"), an alias. TYPE is a,
aaaa, cname (the default, which leads to the environment), txt or srv. It is
served when the command has returned.`,
		Example: `  remotegpu dns add demo www
  remotegpu dns add demo @ txt "owner=me"
  remotegpu dns add demo db.demo a 192.0.2.10
  remotegpu dns add demo _sip._udp.demo srv 0 5 5060 other`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			request.Environment, request.Project, request.Name, request.RequestId = args[0], a.project, args[1], w.id()
			if args[1] == "" {
				return usagef(`write "@" for the environment's own name`, "the name of the record is empty")
			}
			kind := "cname"
			if len(args) > 2 {
				kind, request.Data = args[2], strings.Join(args[3:], " ")
			}
			if !slices.Contains(dnsTypes(), strings.ToLower(kind)) {
				return usagef("use one of "+strings.Join(dnsTypes(), ", "), "records of type %q cannot be added", kind)
			}
			if cmd.Flags().Changed("ttl") && request.GetTtl() == 0 {
				return usagef("give it 1 to 86400 seconds, or leave it out", "a TTL of 0 s is none")
			}
			types, err := parseEnums[remotegpuv1.DNSRecordType]([]string{kind}, "type", "DNS_RECORD_TYPE_", remotegpuv1.DNSRecordType_value)
			if err != nil {
				return err
			}
			request.Type = types[0]
			if request.Labels, err = keyValues("label", labels); err != nil {
				return err
			}
			c, err := a.dial()
			if err != nil {
				return err
			}
			response, err := c.dns.CreateDNSRecord(cmd.Context(), request)
			if err != nil {
				return err
			}
			for _, warning := range response.GetWarnings() {
				a.say("Warning: %s", plain(warning))
			}
			if a.output == "json" {
				return a.json(response.GetRecord())
			}
			return a.dnsTable([]*remotegpuv1.DNSRecord{response.GetRecord()})
		},
	}
	cmd.Flags().Uint32Var(&request.Ttl, "ttl", 0, "for how long it may be remembered, 1 to 86400 seconds (default 5)")
	cmd.Flags().StringArrayVarP(&labels, "label", "l", nil, "label KEY=VALUE")
	cmd.Flags().StringVar(&w.requestID, "request-id", "", "makes repeating the command safe: the same id answers with the first one's record")
	return cmd
}

func (a *app) completeDNSAdd(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.completeEnvs(cmd, args, prefix)
	case 2:
		return dnsTypes(), cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) dnsRemove() *cobra.Command {
	request := &remotegpuv1.DeleteDNSRecordRequest{}
	cmd := &cobra.Command{
		Use: "rm ID...", Aliases: []string{"delete"}, Short: "Remove DNS records that were added", Args: cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeDNSRecords,
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.dial()
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), args, func(id string) error {
				request.Id = id
				response, err := c.dns.DeleteDNSRecord(cmd.Context(), request)
				if err != nil {
					return err
				}
				if a.output == "json" {
					return a.jsonLine(response)
				}
				return a.printf("%s: removed\n", plain(id))
			})
		},
	}
	etagFlag(cmd.Flags(), &request.Etag)
	return cmd
}

// completeDNSRecords offers the records that were added.
func (a *app) completeDNSRecords(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return a.offer(cmd, args, prefix, func(ctx context.Context, c *clients) ([]cobra.Completion, error) {
		response, err := c.dns.ListDNSRecords(ctx, &remotegpuv1.ListDNSRecordsRequest{
			Project: a.project, Source: remotegpuv1.DNSRecordSource_DNS_RECORD_SOURCE_USER, PageSize: 500,
		})
		var found []cobra.Completion
		for _, r := range response.GetRecords() {
			found = append(found, cobra.CompletionWithDesc(r.GetId(), r.GetName()+" "+state(r.GetType(), "DNS_RECORD_TYPE_")))
		}
		return found, err
	})
}
