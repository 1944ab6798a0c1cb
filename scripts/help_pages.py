"""Write down what `--help` says, for the package: `make help-pages`, after anything changed of which help tells."""

from smalti.cli import all_pages
from smalti.help_pages import write_pages

if __name__ == "__main__":
    write_pages(all_pages())
