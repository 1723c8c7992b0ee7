module plainapi

go 1.26
