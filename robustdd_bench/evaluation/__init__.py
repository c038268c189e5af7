"""Students trained on a distilled set, and what attacks do to them."""
