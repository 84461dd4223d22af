"""Class names, colours and mask values of data sets whose lists are long."""
