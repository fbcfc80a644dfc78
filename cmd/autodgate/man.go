package main

import (
	"bytes"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func newMan() *cobra.Command {
	return &cobra.Command{
		Use: "man", Short: "Print the manual page", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var b bytes.Buffer
			if err := doc.GenMan(cmd.Root(), &doc.GenManHeader{Title: "AUTODGATE", Section: "1"}, &b); err != nil {
				return err
			}
			_, err := b.WriteTo(cmd.OutOrStdout())
			return err
		},
	}
}
