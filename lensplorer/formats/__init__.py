"""Files: attributions in TokenLens' and Inseq's formats, results as tables, figures as pages and pictures."""
