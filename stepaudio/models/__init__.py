"""The nets. They open no file and know no checkpoint."""
