"""`tinygpt report` and `tinygpt export`: write a run, or a model alone, as one HTML file in which the model runs.

The page needs no other file: it contains the weights, the style, the script and the drawings. Its content security
policy forbids every request, and allows only the script with the checksum that it names. So no value of a run can run
as code. Jinja2 escapes all values.

Whoever has the file has its content, so the commands and the page list it. `report --no_text` leaves out samples and
all text of the dataset; `export` contains none, except the opening words, which the model generates.

command.py makes a page. gather.py collects its values; page.py renders them. In the
browser, model.js computes what the model computes, attention too; the other scripts show it.
"""
