package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newHealth() *cobra.Command {
	var file, address string
	cmd := &cobra.Command{
		Use: "health [--config FILE | --admin ADDRESS]", Short: "Ask a running front door whether it is well", Args: cobra.NoArgs,
		Long: `Ask a running front door, through its admin listener, whether it is well.

Exit status: 0 it is, 1 it is not or does not answer.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if file != "" {
				cfg, report, err := readConfig(file)
				if err != nil {
					fmt.Fprint(cmd.ErrOrStderr(), report.String())
					return err
				}
				if address = cfg.Listen.Admin; address == "" {
					return badUsage(fmt.Errorf("%s switches the admin listener off", file))
				}
			}
			host, port, err := net.SplitHostPort(address)
			if err != nil {
				return badUsage(fmt.Errorf("--admin: %w", err))
			}
			if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
				host = "127.0.0.1"
			}
			client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{Proxy: nil}}
			resp, err := client.Get("http://" + net.JoinHostPort(host, port) + "/health")
			if err != nil {
				return notFine(fmt.Errorf("no front door answers on %s: %w", address, err))
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
			text := strings.TrimSpace(string(body))
			if resp.StatusCode != http.StatusOK {
				return notFine(fmt.Errorf("%s: %s", resp.Status, text))
			}
			fmt.Fprintln(cmd.OutOrStdout(), text)
			return nil
		},
	}
	cmd.Flags().StringVarP(&file, "config", "c", "", "take the address from this configuration")
	cmd.Flags().StringVar(&address, "admin", "127.0.0.1:9480", "the admin listener's address")
	cmd.MarkFlagsMutuallyExclusive("config", "admin")
	return cmd
}
