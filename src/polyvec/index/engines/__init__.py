"""Where an index is kept, one file per engine; `interface` says what each of them does."""
