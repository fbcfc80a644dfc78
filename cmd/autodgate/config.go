package main

import (
	"github.com/spf13/cobra"

	"github.com/autodgate/autodgate/config"
)

func newConfig() *cobra.Command {
	cmd := &cobra.Command{
		Use: "config", Short: "Print what a configuration may say", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	add := func(use, short string, text func() []byte) {
		cmd.AddCommand(&cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(text())
			return err
		}})
	}
	add("schema", "Print the JSON Schema of the configuration", config.Schema)
	add("example", "Print a commented example", config.Example)
	add("reference", "Print the reference of all keys, in Markdown", config.Reference)
	return cmd
}
