"""`tinygpt report`: the page of a run, once or kept up to date, or only its curves.

tinygpt report out                          # out/report.html
tinygpt report out --live                   # the same, updated while the run trains
tinygpt report out out-mine --png a.png
"""

from pathlib import Path

from tinygpt.base.configs.examine import ReportConfig
from tinygpt.base.errors import TinyGPTError, require_installed
from tinygpt.examine.report.curves import RUN_COLOURS
from tinygpt.examine.report.live import keep_up_to_date, remove_leftovers
from tinygpt.examine.report.page import destination, publish, templates
from tinygpt.examine.report.plot import convert, draw


def report(config: ReportConfig) -> None:
    """Run the command. Errors: TinyGPTError if nothing can be shown."""
    folders = [Path(name) for name in config.runs]
    if config.tensorboard:
        convert(folders)
    elif config.png:
        draw(config)
    elif config.live:
        require_installed("report --live", "matplotlib")
        keep_up_to_date(config, page_path(config))
    else:
        from tinygpt.examine.report.gather import gather

        path = page_path(config)
        publish(gather(folders, config), path)
        remove_leftovers(path)


def page_path(config: ReportConfig) -> Path:
    """Choose the file of the page. Errors: TinyGPTError if no page can be written there, or of so many runs."""
    templates()  # refuses early if Jinja2 is missing
    path = destination(config.output, Path(config.runs[0]), "report.html")
    if len(config.runs) > RUN_COLOURS:
        what = f"one figure cannot show the curves of {len(config.runs)} runs"
        raise TinyGPTError(what, f"name at most {RUN_COLOURS} run folders")
    return path
